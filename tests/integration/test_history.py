"""Runs of each day, for the report."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from service.postgres.database import Database, Limits, open_database
from service.postgres.history import Period, Runs, runs_by_day
from tests.support.catalog import Sql

_LIMITS = Limits(1, *(timedelta(seconds=10),) * 3)
_DAY = date(2026, 11, 20)
_NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture(name="database")
async def _database(database_url: str, sql: Sql) -> AsyncIterator[Database]:
    await sql.execute(
        "ALTER ROLE backups_service IN DATABASE " + database_url.rpartition("/")[2].partition("?")[0] + " SET timezone = 'Asia/Tokyo'"
    )
    async with open_database(database_url, _LIMITS) as database:
        yield database


async def _backup(sql: Sql, id_: str, created_at: datetime, **columns: Any) -> None:
    """Insert a backup of c1 by WAL-G that took an hour."""
    values = {
        "id": id_,
        "folder_id": "f1",
        "source_cluster_id": "c1",
        "tool": "walg",
        "created_at": created_at,
        "started_at": created_at - timedelta(hours=1),
        "size": 100,
        "method": "base",
    } | columns
    marks = ", ".join(f"${number}" for number in range(1, 1 + len(values)))
    await sql.execute(f"INSERT INTO backups ({', '.join(values)}) VALUES ({marks})", *values.values())


async def _runs(
    database: Database, *, first: date = _DAY, last: date = _DAY, owner: tuple[str, str, str] = ("c1", "walg", "")
) -> list[Runs]:
    return await runs_by_day(database, *owner, Period(first, last))


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({}, "base"),
        ({"method": None}, "base"),
        ({"method": "incremental"}, "incremental"),
        ({"contents": "metadata only"}, "partial"),
        ({"contents": "filtered", "method": "incremental"}, "partial"),
        ({"chain": "broken", "method": "incremental"}, "unusable"),
        ({"chain": "unknown"}, "unusable"),
        ({"missing_since": _NOON}, "unusable"),
        ({"contents": "data only", "missing_since": _NOON}, "unusable"),
    ],
)
async def test_kinds(database: Database, sql: Sql, columns: dict[str, Any], kind: str) -> None:
    """The kind of a backup is its method if it can be restored; otherwise it is partial or unusable."""
    await _backup(sql, "b1", _NOON, **columns)
    assert await _runs(database) == [Runs(_DAY, kind, 100, timedelta(hours=1))]  # type: ignore[arg-type]


async def test_days_are_those_of_utc(database: Database, sql: Sql) -> None:
    """A day begins and ends at midnight in UTC, in any time zone of the session, and both bounds belong to the period."""
    midnight, second = _NOON - timedelta(hours=12), timedelta(seconds=1)
    for number, created_at in enumerate([midnight - second, midnight, midnight + timedelta(days=1) - second, midnight + timedelta(days=1)]):
        await _backup(sql, f"b{number}", created_at, size=number)
    assert [(each.day, each.size) for each in await _runs(database)] == [(_DAY, 2)]
    day = timedelta(days=1)
    assert [(each.day, each.size) for each in await _runs(database, first=_DAY - day, last=_DAY + day)] == [
        (_DAY - day, 0),
        (_DAY, 2),
        (_DAY + day, 3),
    ]


async def test_largest_of_a_day(database: Database, sql: Sql) -> None:
    """Of several backups of a kind on a day, the largest size and the longest duration count; unknown sizes do not."""
    await _backup(sql, "b1", _NOON, size=7)
    await _backup(sql, "b2", _NOON, size=None, started_at=_NOON - timedelta(hours=3))
    await _backup(sql, "b3", _NOON, size=None, method="incremental")
    assert await _runs(database) == [
        Runs(_DAY, "base", 7, timedelta(hours=3)),
        Runs(_DAY, "incremental", None, timedelta(hours=1)),
    ]


async def test_attempts(database: Database, sql: Sql) -> None:
    """Failed and crashed runs count on the day of their start, and a running one does not."""
    await sql.executemany(
        "INSERT INTO attempts VALUES ('c1', 'gpbackup', 'f1', 'sales', $1, $2, $3)",
        [("1", _NOON, "failed"), ("2", _NOON, "crashed"), ("3", _NOON + timedelta(days=1), "running")],
    )
    owner = ("c1", "gpbackup", "sales")
    assert await _runs(database, last=_DAY + timedelta(days=2), owner=owner) == [Runs(_DAY, "failed", None, None)]


async def test_owner(database: Database, sql: Sql) -> None:
    """Runs of other clusters, tools and databases are not included."""
    await _backup(sql, "b1", _NOON)
    await _backup(sql, "b2", _NOON, source_cluster_id="c2", size=2)
    await _backup(sql, "b3", _NOON, tool="gpbackup", size=3)
    await _backup(sql, "b4", _NOON, tool="gpbackup", database="sales", size=4)
    for owner, size in ((("c2", "walg", ""), 2), (("c1", "gpbackup", ""), 3), (("c1", "gpbackup", "sales"), 4)):
        assert [each.size for each in await _runs(database, owner=owner)] == [size]
