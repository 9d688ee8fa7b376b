"""Pages of the report that tests make without a catalog."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

from service.cli.report.page import Cluster, Page, Section, clusters, history, render, restore
from service.cli.rules.judgement import Judgement, Rules
from service.cli.rules.overdue import Limits, judge
from service.postgres.freshness import Freshness
from service.postgres.history import Kind, Period, Runs
from service.postgres.restore_chain import Chain, Link

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
TODAY = date(2026, 11, 27)

HOSTILE_NAMES = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</style></title><h1>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\u2066",
    "line\nbreak\x00\x1b[2J\x7f",
    "javascript:alert(1)//&lt;&#60;",
    "\U0001f600 مرحبا",
    "x" * 10_000,
]


def make_row(cluster: str = "c1", **facts: Any) -> Freshness:
    """Return a row whose last restorable backup is three hours old."""
    empty: dict[str, Any] = dict.fromkeys(Freshness._fields) | dict.fromkeys(("restorable", "partial", "broken", "unknown", "missing"), 0)
    empty |= {"entries": 1, "skipped": 0, "unusable": 0, "excluded": 0, "backups": 1, "imported_at": NOW, "database": ""}
    last = {"last_backup_id": "b1", "last_created_at": NOW - timedelta(hours=3), "last_method": "base", "restorable": 1}
    return Freshness(**empty | last | {"folder_id": "f1", "source_cluster_id": cluster, "tool": "walg"} | facts)


def make_runs(day: int, kind: Kind, size: int | None = None, hours: float | None = None) -> Runs:
    """Return the runs of one kind, `day` days ago."""
    return Runs(TODAY - timedelta(days=day), kind, size, None if hours is None else timedelta(hours=hours))


def make_link(number: int, **facts: Any) -> Link:
    """Return an increment that was completed `number` days ago."""
    created_at = NOW - timedelta(days=number)
    link = Link(f"b{number}", f"n{number}", created_at, created_at - timedelta(hours=1), "incremental", "everything", 100, "usable", None)
    return link._replace(**facts)


def make_page(*rows: Freshness, **changes: Any) -> Page:
    """Return a page about rows that are judged without limits."""
    judgement = Judgement(list(rows), list(rows), list(judge(rows, NOW, Limits(), None)), NOW)
    found = clusters(judgement)
    attention = sum(cluster.needs_attention for cluster in found)
    page = Page(judgement, Rules(None, None, None), [], Period.until(TODAY, 180), found, len(found), attention)
    return page._replace(**changes)


async def make_html(page: Page, runs: list[Runs] | None = None, chain: Chain | None = None) -> str:
    """Return the page as HTML. All rows have the same runs and the same chain."""

    async def sections() -> AsyncIterator[tuple[Cluster, list[Section]]]:
        for cluster in page.clusters:
            yield cluster, [Section(row, history(page.period, runs or []), restore(chain)) for row in cluster.rows]

    return "".join([part async for part in render(page, sections())])


async def hostile_html(*names: str) -> str:
    """Return a page with a cluster for each name, which is used in every field that can contain a name."""
    rows = [make_row(name, folder_id=name, tool="gpbackup", database=name, failed_attempts=1, last_failed_name=name) for name in names]
    needed = [make_link(1, id=None, name=name, created_at=None, state="unknown") for name in names]
    chain = Chain(make_link(0), "f1", "c1", "walg", "", needed, [])
    return await make_html(make_page(*rows, scope=list(names)), [make_runs(1, "base", 1, 1), make_runs(0, "failed")], chain)
