"""The report as an HTML page: its content, and its template in `templates/`.

The page has no script and loads nothing. The template is rendered while the clusters are read, so that one cluster is in memory at a time.
"""

import itertools
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from service import VERSION
from service.cli import formatting
from service.cli.report.drawings import CHART_HEIGHT, Calendar, calendars, chart, symbol
from service.cli.rules.judgement import Judgement, Rules
from service.cli.rules.overdue import name_of
from service.cli.status.columns import findings
from service.postgres.freshness import Freshness
from service.postgres.history import Kind, Period, Runs
from service.postgres.restore_chain import Chain, Link

_TEMPLATES = Path(__file__).parent / "templates"
_CHAIN_MAX = 12  # backups of a chain that are shown
_CHARTS: tuple[Kind, ...] = ("base", "incremental", "partial")

# Of several runs on a day, the first of these is shown.
KINDS: dict[Kind | None, str] = {
    "base": "base",
    "incremental": "incremental",
    "failed": "failed",
    "unusable": "not restorable",
    "partial": "partial",
    None: "none",
}
"""Kinds of days, with their names."""
_RESTORABLE = ("base", "incremental")


class Row(NamedTuple):
    """A row of freshness, with the rules that it breaks and its findings."""

    freshness: Freshness
    overdue: list[str]
    """Reasons of the broken rules."""
    findings: list[str]

    @property
    def needs_attention(self) -> bool:
        return bool(self.overdue) or any(finding != "running" for finding in self.findings)


class Cluster(NamedTuple):
    """The rows of a cluster, by tool and database."""

    number: int
    folder_id: str
    id: str
    rows: list[Row]

    @property
    def needs_attention(self) -> bool:
        return any(row.needs_attention for row in self.rows)


class Chart(NamedTuple):
    """Values of one kind of backup over days."""

    kind: Kind
    title: str
    last: str
    largest: str
    path: str


class History(NamedTuple):
    """Drawings of a cluster, tool and database."""

    calendars: list[Calendar]
    days: dict[str, int]
    """Number of days of each kind, by its name."""
    restorable_days: int
    gap: Period | None
    """The longest time without a restorable backup after the first one; None if every day has one."""
    charts: list[Chart]


class Restore(NamedTuple):
    """The chain of the last restorable backup."""

    links: list[Link]
    """In the order of a restore. If they are many, the first one and the last ones."""
    left_out: int
    total: int
    """Number of all of them."""
    size: int | None
    """Of all of them; None if one size is unknown."""


class Section(NamedTuple):
    """A part of a cluster's section."""

    row: Row
    history: History
    restore: Restore | None
    """None if there is no restorable backup, or if its row was deleted."""


def clusters(judgement: Judgement) -> list[Cluster]:
    """Return the judged rows by cluster: first those that need attention, then in the order of `status`."""
    reasons: dict[tuple[str, str | None, str | None], list[str]] = {}
    for each in judgement.overdue:
        reasons.setdefault(each[:3], []).append(each.reason)
    found: dict[tuple[str, str], list[Row]] = {}
    for row in judgement.judged:
        overdue = reasons.get((row.source_cluster_id, row.tool, row.database or None), [])
        found.setdefault(row[:2], []).append(Row(row, overdue, list(findings(row, judgement.now))))
    unsorted = [Cluster(number, *owner, rows) for number, (owner, rows) in enumerate(found.items(), 1)]
    return sorted(unsorted, key=lambda cluster: not cluster.needs_attention)


def history(period: Period, runs: Sequence[Runs]) -> History:
    """Return the drawings of runs, which are ordered by day."""
    best: dict[date, Kind] = {}
    order = list(KINDS)
    for each in runs:
        best[each.day] = min(each.kind, best.get(each.day, each.kind), key=order.index)
    kinds = [best.get(period.first + timedelta(days=offset)) for offset in range(period.days)]
    restorable = sorted(day for day, kind in best.items() if kind in _RESTORABLE)
    return History(
        list(calendars(period, best)),
        {name: count for kind, name in KINDS.items() if (count := kinds.count(kind))},
        len(restorable),
        _longest_gap(restorable, period.last),
        [each for kind in _CHARTS for each in _charts(period, kind, [run for run in runs if run.kind == kind])],
    )


def _longest_gap(days: list[date], last: date) -> Period | None:
    """Return the longest gap after the first day. The last day is not counted, because it is not over."""
    day = timedelta(days=1)
    gaps = [Period(before + day, after - day) for before, after in itertools.pairwise([*days, last])]
    longest = max(gaps, key=lambda gap: gap.days, default=None)
    return longest if longest and longest.days > 0 else None


def _charts(period: Period, kind: Kind, runs: list[Runs]) -> Iterator[Chart]:
    sizes = {each.day: float(each.size) for each in runs if each.size is not None}
    seconds = {each.day: each.duration.total_seconds() for each in runs if each.duration is not None}
    for what, values, text in (("Size", sizes, _size), ("Duration", seconds, _duration)):
        if values:
            last, largest = values[max(values)], max(values.values())
            yield Chart(kind, f"{what} of {kind} backups", text(last), text(largest), chart(period, values))


def _size(count: float) -> str:
    return formatting.size(int(count))


def _duration(seconds: float) -> str:
    return formatting.duration(timedelta(seconds=seconds))


def restore(chain: Chain | None) -> Restore | None:
    """Return the backups that a restore of a backup reads."""
    if chain is None:
        return None
    links = [*chain.needs, chain.backup]
    sizes = [link.size for link in links if link.size is not None]
    shown = links if len(links) <= _CHAIN_MAX else [links[0], *links[1 - _CHAIN_MAX :]]
    return Restore(shown, len(links) - len(shown), len(links), sum(sizes) if len(sizes) == len(links) else None)


class Page(NamedTuple):
    """The content of a report, except for its sections."""

    judgement: Judgement
    rules: Rules
    scope: list[str]
    """The filters of the command line."""
    period: Period
    clusters: list[Cluster]
    """Those that have a section."""
    total: int
    """Number of clusters."""
    attention: int
    """Number of clusters that need attention."""

    @property
    def left_out(self) -> int:
        return self.total - len(self.clusters)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of the summary."""
        rows = self.judgement.judged
        return {
            "overdue": len({each[:3] for each in self.judgement.overdue}),
            **{state: sum(getattr(row, state) for row in rows) for state in ("broken", "unknown", "missing")},
            "failed": sum(row.failed_attempts or 0 for row in rows) + sum(row.run_state(self.judgement.now) == "crashed" for row in rows),
        }

    @property
    def not_imported(self) -> list[str]:
        """Names of the expected clusters that were never imported."""
        return [name_of(*each[:3]) for each in self.judgement.overdue if each.rule == "not-imported"]


def render(page: Page, sections: AsyncIterable[tuple[Cluster, list[Section]]]) -> AsyncIterator[str]:
    """Return the parts of the HTML page, while the sections are read."""
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, enable_async=True)
    environment.trim_blocks = environment.lstrip_blocks = True
    now = page.judgement.now
    environment.filters |= {
        "printable": formatting.printable,
        "time": formatting.time,
        "minute": _minute,
        "duration": formatting.duration,
        "size": formatting.size,
        "age": lambda time: formatting.duration(now - time),
    }
    template = environment.get_template("report.html")
    return template.generate_async(
        page=page, sections=sections, kinds=KINDS, symbol=symbol, chart_height=CHART_HEIGHT, version=VERSION, now=now
    )


def _minute(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%MZ}"
