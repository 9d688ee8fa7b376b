"""Rules that a cluster's freshness must meet. Each broken rule has a name, which JSON contains, and a reason."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, TypeAlias

from service.cli.formatting import duration, printable
from service.cli.rules.expected import Expected
from service.entry import CLOCK_TOLERANCE
from service.postgres.freshness import Freshness

Rule: TypeAlias = Literal["not-imported", "no-restorable-backup", "no-restorable-base", "future", "max-age", "max-age-base", "import-age"]


class Limits(NamedTuple):
    """Ages above which something is overdue."""

    max_age: timedelta | None = None
    """Of the last restorable backup, and of the last import."""
    max_age_base: timedelta | None = None
    """Of the last restorable base."""


class Overdue(NamedTuple):
    """A broken rule."""

    cluster_id: str
    tool: str | None
    """None, as the database, for all of them."""
    database: str | None
    rule: Rule
    reason: str


def judge(rows: Sequence[Freshness], now: datetime, limits: Limits, expected: Sequence[Expected] | None) -> Iterator[Overdue]:
    """Return the broken rules of all rows, or of the expected ones.

    The most precise expectation sets the limit of a row. An expectation without a row is overdue.
    """
    by_cluster: dict[str, list[Expected]] = {}
    for each in sorted(expected or (), key=_precision, reverse=True):
        by_cluster.setdefault(each.cluster_id, []).append(each)
    seen: set[Expected] = set()
    for row in rows:
        matching = [each for each in by_cluster.get(row.source_cluster_id, ()) if each.matches(row)]
        seen.update(matching)
        if expected is None:
            yield from _judge_row(row, now, limits)
        elif matching:
            yield from _judge_row(row, now, limits._replace(max_age=matching[0].max_age or limits.max_age))
    for each in expected or ():
        if each not in seen:
            yield Overdue(each.cluster_id, each.tool, each.database, "not-imported", "it was never imported")


def _precision(expected: Expected) -> tuple[bool, bool]:
    return expected.tool is not None, expected.database is not None


def _judge_row(row: Freshness, now: datetime, limits: Limits) -> Iterator[Overdue]:
    for rule, reason in (
        *_last_backup(row, now, limits.max_age),
        *_last_base(row, now, limits.max_age_base),
        *_last_import(row, now, limits),
    ):
        yield Overdue(row.source_cluster_id, row.tool, row.database or None, rule, reason)


def _last_backup(row: Freshness, now: datetime, max_age: timedelta | None) -> Iterator[tuple[Rule, str]]:
    if row.last_created_at is None:
        yield "no-restorable-backup", f"there is no restorable backup{_not_restorable(row)}"
        return
    age = now - row.last_created_at
    if age < -CLOCK_TOLERANCE:
        yield "future", f"the last restorable backup is dated {duration(-age)} in the future"
    elif max_age is not None and age > max_age:
        yield "max-age", f"the last restorable backup was completed {duration(age)} ago"


def _not_restorable(row: Freshness) -> str:
    """Return the numbers of backups that are not restorable, in parentheses."""
    counts = {"partial": row.partial, "broken": row.broken, "unknown": row.unknown, "missing": row.missing}
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f" ({shown})" if shown else ""


def _last_base(row: Freshness, now: datetime, max_age: timedelta | None) -> Iterator[tuple[Rule, str]]:
    if max_age is None:
        return
    if row.last_base_created_at is None:
        yield "no-restorable-base", "there is no restorable base"
    elif (age := now - row.last_base_created_at) > max_age:
        yield "max-age-base", f"the last restorable base was completed {duration(age)} ago"


def _last_import(row: Freshness, now: datetime, limits: Limits) -> Iterator[tuple[Rule, str]]:
    max_age = limits.max_age if limits.max_age is not None else limits.max_age_base
    if max_age is not None and (age := now - row.imported_at) > max_age:
        yield "import-age", f"the last import was {duration(age)} ago"


def rows_to_judge(rows: Sequence[Freshness], expected: Sequence[Expected] | None) -> list[Freshness]:
    """Return all rows, or the expected ones."""
    return [row for row in rows if expected is None or any(each.matches(row) for each in expected)]


def name_of(cluster_id: str, tool: str | None, database: str | None) -> str:
    """Return the cluster, tool and database, with control characters escaped."""
    parts = [f"cluster {printable(cluster_id)}", tool, f"database {printable(database)}" if database else None]
    return ", ".join(part for part in parts if part)


def lines(overdue: Iterable[Overdue]) -> Iterator[str]:
    """Return a line for each cluster, tool and database that is overdue, with all its reasons."""
    reasons: dict[str, list[str]] = {}
    for found in overdue:
        reasons.setdefault(name_of(*found[:3]), []).append(found.reason)
    for name, texts in reasons.items():
        yield f"Overdue: {name}: {', and '.join(texts)}."
