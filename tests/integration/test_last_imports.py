"""What is known of each cluster's imports, and what it costs to ask."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.entry import Entry
from service.errors import CatalogUnavailable
from service.postgres import last_imports
from service.postgres.database import Database, Limits, open_database
from service.postgres.import_backups import Options, Target, load
from service.postgres.last_imports import Imported, imported, oldest
from tests.support.catalog import Sql

_TIME = datetime(2026, 11, 20, 2, 41, 58, 826199, tzinfo=UTC)
_LIMITS = Limits(1, *(timedelta(seconds=10),) * 3)


@pytest.fixture(name="database")
async def _database(database_url: str) -> AsyncIterator[Database]:
    """As the service's role, which can only read."""
    async with open_database(database_url, _LIMITS) as database:
        yield database


def _entry(cluster: str, number: int) -> Entry:
    created_at = _TIME + timedelta(days=number)
    return Entry(f"entry {number}", f"{cluster}:{number}", created_at, created_at - timedelta(hours=2), 1000 + number)


async def _load(url: str, folder: str, cluster: str, tool: str, *numbers: int) -> None:
    await load(url, [_entry(f"{cluster}-{tool}", number) for number in numbers], Target(folder, cluster, tool), Options())


def _names(found: list[Imported]) -> list[tuple[str, str, str]]:
    return [each[:3] for each in found]


async def test_each_cluster_and_tool(import_url: str, database: Database) -> None:
    """Of each cluster and tool there are the last completed backup, its size and duration, how many there are, the last import."""
    await _load(import_url, "f1", "c1", "walg", 3, 1, 2)
    await _load(import_url, "f1", "c1", "gpbackup", 1)
    await _load(import_url, "f1", "c2", "walg")
    await _load(import_url, "f2", "c3", "walg", 5)

    found = await imported(database, folder_id=None, cluster_id=None)
    assert _names(found) == [("f1", "c1", "gpbackup"), ("f1", "c1", "walg"), ("f1", "c2", "walg"), ("f2", "c3", "walg")]
    last = found[1]
    assert last[4:] == (3, "c1-walg:3", _TIME + timedelta(days=3), timedelta(hours=2), 1003)
    assert found[2][4:] == (0, None, None, None, None)

    assert _names(await imported(database, folder_id="f2", cluster_id=None)) == [("f2", "c3", "walg")]
    assert _names(await imported(database, folder_id=None, cluster_id="c1")) == [("f1", "c1", "gpbackup"), ("f1", "c1", "walg")]
    assert await imported(database, folder_id="f2", cluster_id="c1") == []


async def test_an_import_that_changed_nothing_counts(import_url: str, database: Database) -> None:
    """The last import is the last one, whether it changed anything or not."""
    await _load(import_url, "f1", "c1", "walg", 1)
    [first] = await imported(database, folder_id=None, cluster_id=None)
    await _load(import_url, "f1", "c1", "walg", 1)
    [second] = await imported(database, folder_id=None, cluster_id=None)
    assert second.imported_at > first.imported_at
    assert second._replace(imported_at=first.imported_at) == first


async def test_a_last_backup_that_was_deleted_since(import_url: str, database: Database, sql: Sql) -> None:
    """Where the last backup's row is gone since the import, its time stays known, its size and duration are not."""
    await _load(import_url, "f1", "c1", "walg", 1)
    await sql.execute("DELETE FROM backups")
    [found] = await imported(database, folder_id=None, cluster_id=None)
    assert (found.last_created_at, found.last_duration, found.last_size) == (_TIME + timedelta(days=1), None, None)


async def test_the_oldest(import_url: str, database: Database) -> None:
    """Those without a backup come first, then the oldest; what is beyond the limit is counted."""
    assert await oldest(database, limit=3) == ([], 0)
    for cluster, number in (("c1", 5), ("c2", 1), ("c3", 3), ("c4", 4)):
        await _load(import_url, "f1", cluster, "walg", number)
    await _load(import_url, "f1", "c5", "walg")

    found = await oldest(database, limit=3)
    assert [each.source_cluster_id for each in found.kept] == ["c5", "c2", "c3"]
    assert (found.kept[1].last_size, found.left_out) == (1001, 2)
    assert (await oldest(database, limit=5)).left_out == 0


async def test_no_database() -> None:
    """A database that is not there is a clear error."""
    async with open_database("postgresql://127.0.0.1:1/none", _LIMITS) as database:
        with pytest.raises(CatalogUnavailable):
            await imported(database, folder_id=None, cluster_id=None)


# The plans


@pytest.fixture(name="many")
async def _many(sql: Sql) -> Sql:
    """100,000 backups of 5,000 clusters, and their imports."""
    await sql.execute("""
        INSERT INTO backups (id, folder_id, created_at, source_cluster_id, started_at, size, tool)
        SELECT 'b' || n, 'f' || n % 10, '2026-01-01 00:00:00+00'::timestamptz + n * interval '1 minute', 'c' || n % 5000,
               '2026-01-01 00:00:00+00', n, 'walg'
        FROM generate_series(1, 100000) AS n""")
    await sql.execute("""
        INSERT INTO imports (source_cluster_id, tool, folder_id, imported_at, entries, skipped, backups, last_backup_id, last_created_at)
        SELECT source_cluster_id, tool, folder_id, now(), count(*), 0, count(*), max(id), max(created_at)
        FROM backups GROUP BY source_cluster_id, tool, folder_id""")
    await sql.execute("VACUUM (ANALYZE) backups")
    await sql.execute("VACUUM (ANALYZE) imports")
    return sql


def _scans(plan: dict[str, Any]) -> list[dict[str, Any]]:
    found = [plan] if "Relation Name" in plan else []
    return found + [scan for part in plan.get("Plans", []) for scan in _scans(part)]


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize(
    ("query", "types", "arguments", "rows"),
    [
        (last_imports._IMPORTED, "text, text", "NULL, NULL", 5000),
        (last_imports._IMPORTED, "text, text", "'f1', NULL", 500),
        (last_imports._OLDEST, "bigint", "20", 20),
    ],
)
async def test_a_cluster_costs_one_look_up(many: Sql, plans: str, query: str, types: str, arguments: str, rows: int) -> None:
    """Of `backups`, one row a cluster is read, by primary key, however many there are; never all of them."""
    await many.execute(f"SET plan_cache_mode = {plans}")
    await many.execute(f"PREPARE planned ({types}) AS {query}")
    [row] = await many.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE planned ({arguments})")
    of_backups, of_imports = sorted(_scans(json.loads(row[0])[0]["Plan"]), key=lambda scan: str(scan["Relation Name"]))
    assert (of_backups["Node Type"], of_backups["Index Name"]) == ("Index Scan", "backups_pkey")
    assert (of_backups["Actual Loops"], of_backups["Actual Rows"]) == (rows, 1)
    assert of_backups["Shared Hit Blocks"] + of_backups["Shared Read Blocks"] <= 4 * rows
    assert of_imports["Relation Name"] == "imports"
