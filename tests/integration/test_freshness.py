"""The read model of freshness, and the cost of reading it."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.entry import Entry
from service.errors import CatalogUnavailable
from service.postgres import freshness as queries
from service.postgres.database import Database, Limits, open_database
from service.postgres.freshness import Freshness, freshness, stalest
from service.postgres.imports.import_backups import Options, Target, load
from tests.support.catalog import Sql

_TIME = datetime(2026, 11, 20, 2, 41, 58, 826199, tzinfo=UTC)
_LIMITS = Limits(1, *(timedelta(seconds=10),) * 3)


@pytest.fixture(name="database")
async def _database(database_url: str) -> AsyncIterator[Database]:
    """Yield a database that is opened as the service's role, which can only read."""
    async with open_database(database_url, _LIMITS) as database:
        yield database


def _entry(cluster: str, number: int) -> Entry:
    created_at = _TIME + timedelta(days=number)
    return Entry(f"entry {number}", f"n{number}", f"{cluster}:{number}", created_at, created_at - timedelta(hours=2), 1000 + number)


async def _load(url: str, folder: str, cluster: str, tool: str, *numbers: int) -> None:
    await load(url, [_entry(f"{cluster}-{tool}", number) for number in numbers], Target(folder, cluster, tool), Options())


def _names(found: list[Freshness]) -> list[tuple[str, str, str]]:
    return [each[:3] for each in found]


async def test_each_cluster_and_tool(import_url: str, database: Database) -> None:
    """Each cluster and tool has a row with its last backup, its last import and the number of its backups."""
    await _load(import_url, "f1", "c1", "walg", 3, 1, 2)
    await _load(import_url, "f1", "c1", "gpbackup", 1)
    await _load(import_url, "f1", "c2", "walg")
    await _load(import_url, "f2", "c3", "walg", 5)

    found = await freshness(database, folder_id=None, cluster_id=None)
    assert _names(found) == [("f1", "c1", "gpbackup"), ("f1", "c1", "walg"), ("f1", "c2", "walg"), ("f2", "c3", "walg")]
    last = found[1]
    assert (last.backups, last.restorable, last.last_backup_id) == (3, 3, "c1-walg:3")
    assert (last.last_created_at, last.last_duration, last.last_size) == (_TIME + timedelta(days=3), timedelta(hours=2), 1003)
    none = found[2]
    assert (none.backups, none.last_backup_id, none.last_created_at, none.last_duration, none.last_size) == (0, None, None, None, None)

    assert _names(await freshness(database, folder_id="f2", cluster_id=None)) == [("f2", "c3", "walg")]
    assert _names(await freshness(database, folder_id=None, cluster_id="c1")) == [("f1", "c1", "gpbackup"), ("f1", "c1", "walg")]
    assert await freshness(database, folder_id="f2", cluster_id="c1") == []


async def test_import_without_changes_is_recorded(import_url: str, database: Database) -> None:
    """An import that changed nothing is recorded as the last import."""
    await _load(import_url, "f1", "c1", "walg", 1)
    [first] = await freshness(database, folder_id=None, cluster_id=None)
    await _load(import_url, "f1", "c1", "walg", 1)
    [second] = await freshness(database, folder_id=None, cluster_id=None)
    assert second.imported_at > first.imported_at
    assert second._replace(imported_at=first.imported_at) == first


async def test_a_last_backup_that_was_deleted_since(import_url: str, database: Database, sql: Sql) -> None:
    """If the row of the last backup is deleted after the import, its time stays known, and its size and duration are unknown."""
    await _load(import_url, "f1", "c1", "walg", 1)
    await sql.execute("DELETE FROM backups")
    [found] = await freshness(database, folder_id=None, cluster_id=None)
    assert (found.last_created_at, found.last_duration, found.last_size) == (_TIME + timedelta(days=1), None, None)


async def test_stalest(import_url: str, database: Database) -> None:
    """Rows without a backup come first, then those whose last backup is oldest; rows beyond the limit are counted."""
    assert await stalest(database, limit=3) == ([], 0)
    for cluster, number in (("c1", 5), ("c2", 1), ("c3", 3), ("c4", 4)):
        await _load(import_url, "f1", cluster, "walg", number)
    await _load(import_url, "f1", "c5", "walg")

    found = await stalest(database, limit=3)
    assert [each.source_cluster_id for each in found.kept] == ["c5", "c2", "c3"]
    assert (found.kept[1].last_size, found.left_out) == (1001, 2)
    assert (await stalest(database, limit=5)).left_out == 0


async def test_no_database() -> None:
    """A database that cannot be reached is a clear error."""
    async with open_database("postgresql://127.0.0.1:1/none", _LIMITS) as database:
        with pytest.raises(CatalogUnavailable):
            await freshness(database, folder_id=None, cluster_id=None)


# The plans


@pytest.fixture(name="many", scope="module")
async def _many(module_sql: Sql) -> Sql:
    """Insert 100,000 backups of 5,000 clusters, and their imports."""
    sql = module_sql
    await sql.execute("""
        INSERT INTO backups (id, folder_id, created_at, source_cluster_id, started_at, size, tool)
        SELECT 'b' || n, 'f' || n % 10, '2026-01-01 00:00:00+00'::timestamptz + n * interval '1 minute', 'c' || n % 5000,
               '2026-01-01 00:00:00+00', n, 'walg'
        FROM generate_series(1, 100000) AS n""")
    await sql.execute("""
        INSERT INTO imports (source_cluster_id, tool, folder_id, imported_at, entries, skipped, unusable, excluded)
        SELECT source_cluster_id, tool, folder_id, now(), count(*), 0, 0, 0 FROM backups GROUP BY source_cluster_id, tool, folder_id""")
    await sql.execute("""
        INSERT INTO freshness
          (source_cluster_id, tool, database, folder_id, backups, last_backup_id, last_created_at, last_base_id, last_base_created_at)
        SELECT source_cluster_id, tool, '', folder_id, count(*), max(id), max(created_at), min(id), min(created_at)
        FROM backups GROUP BY source_cluster_id, tool, folder_id""")
    await sql.execute("VACUUM (ANALYZE) backups")
    for table in ("imports", "freshness"):
        await sql.execute(f"VACUUM (ANALYZE) {table}")
    return sql


def _scans(plan: dict[str, Any]) -> list[dict[str, Any]]:
    found = [plan] if "Relation Name" in plan else []
    return found + [scan for part in plan.get("Plans", []) for scan in _scans(part)]


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize(
    ("query", "types", "arguments", "rows"),
    [
        (queries._ALL, "text, text", "NULL, NULL", 5000),
        (queries._ALL, "text, text", "'f1', NULL", 500),
        (queries._STALEST, "bigint", "20", 20),
    ],
)
async def test_a_cluster_costs_two_look_ups(many: Sql, plans: str, query: str, types: str, arguments: str, rows: int) -> None:
    """Two rows of `backups` are read for each row of freshness, by primary key, for any number of backups."""
    await many.execute(f"SET plan_cache_mode = {plans}")
    await many.execute(f"PREPARE planned ({types}) AS {query}")
    [row] = await many.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE planned ({arguments})")
    await many.execute("DEALLOCATE planned")
    scans = sorted(_scans(json.loads(row[0])[0]["Plan"]), key=lambda scan: str(scan["Relation Name"]))
    for scan in scans[:2]:
        assert (scan["Node Type"], scan["Index Name"]) == ("Index Scan", "backups_pkey")
        assert (scan["Actual Loops"], scan["Actual Rows"]) == (rows, 1)
        assert scan["Shared Hit Blocks"] + scan["Shared Read Blocks"] <= 4 * rows
    assert [scan["Relation Name"] for scan in scans] == ["backups", "backups", "freshness", "imports"]
