"""Query plans of the API, over a table of 100,000 backups."""

import json
from typing import Any

import pytest

from service.postgres import catalog
from tests.support.catalog import Sql


@pytest.fixture(name="many", scope="module")
async def _many(module_sql: Sql) -> Sql:
    """Insert 100,000 backups of 20 clusters in ten folders, and 5,000 of the cluster c1 in another folder. Run VACUUM as an import does."""
    sql = module_sql
    await sql.execute("""
        INSERT INTO backups (id, folder_id, created_at, source_cluster_id, started_at, size, tool)
        SELECT 'b' || n, 'f' || n % 10, '2026-01-01 00:00:00+00'::timestamptz + n * interval '1 minute', 'c' || n % 20,
               '2026-01-01 00:00:00+00', n, 'manual'
        FROM generate_series(1, 100000) AS n""")
    await sql.execute("""
        INSERT INTO backups (id, folder_id, created_at, source_cluster_id, started_at, size, tool)
        SELECT 'g' || n, 'g', '2026-01-01 00:00:00+00'::timestamptz + n * interval '1 minute', 'c1', '2026-01-01 00:00:00+00', n, 'manual'
        FROM generate_series(1, 5000) AS n""")
    await sql.execute("VACUUM (ANALYZE) backups")
    await sql.execute("SET plan_cache_mode = force_generic_plan")  # the plan that a prepared statement uses after a few executions
    return sql


async def _plan(sql: Sql, query: str, types: str, arguments: str) -> dict[str, Any]:
    await sql.execute(f"PREPARE planned ({types}) AS {query}")
    [row] = await sql.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE planned ({arguments})")
    await sql.execute("DEALLOCATE planned")
    plan: dict[str, Any] = json.loads(row[0])[0]["Plan"]
    return plan


def _blocks(node: dict[str, Any]) -> int:
    return int(node["Shared Hit Blocks"]) + int(node["Shared Read Blocks"])


def _nested(plan: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the node that is executed for each lookup, and the number of lookups."""
    lookups, node = plan["Plans"]
    assert (plan["Node Type"], lookups["Node Type"]) == ("Nested Loop", "Function Scan")
    return node, node["Actual Loops"]


@pytest.mark.parametrize("lookups", [1, 8])
@pytest.mark.parametrize(
    ("index", "query", "columns"),
    [
        ("backups_page", catalog.FOLDER_PAGES, ("1000", "9999-12-31T23:59:59.999999+00:00", "", "f1")),
        ("backups_page", catalog.FOLDER_PAGES, ("1000", "2026-02-01T00:00:00+00:00", "b500", "f1")),
        ("backups_cluster_page", catalog.CLUSTER_PAGES, ("1000", "9999-12-31T23:59:59.999999+00:00", "", "f1", "c1")),
        ("backups_cluster_page", catalog.CLUSTER_PAGES, ("1000", "2026-02-01T00:00:00+00:00", "b500", "f1", "c1")),
    ],
)
async def test_a_page_is_an_index_only_scan(many: Sql, index: str, query: str, columns: tuple[str, ...], lookups: int) -> None:
    """Each of several pages is read from the index alone, in order, and no row is read that the page does not need."""
    arguments = ", ".join(f"array_fill('{column}'::text, ARRAY[{lookups}])" for column in columns)
    page, loops = _nested(await _plan(many, query, ", ".join(["text[]"] * len(columns)), arguments))
    [limit] = page["Plans"]
    [scan] = limit["Plans"]
    assert (page["Node Type"], loops) == ("Aggregate", lookups)
    assert (limit["Node Type"], scan["Node Type"], scan["Index Name"]) == ("Limit", "Index Only Scan", index)
    assert scan["Heap Fetches"] == 0
    assert scan["Actual Rows"] == 1001
    assert scan.get("Rows Removed by Filter", 0) == 0
    assert _blocks(scan) < 70 * lookups  # without `wire` in the index, each row would need a block of the table


@pytest.mark.parametrize(
    ("index", "query", "types", "ids"),
    [
        ("backups_page", catalog.FOLDER_PAGE, "bigint, timestamptz, text, text", "'f1'"),
        ("backups_cluster_page", catalog.CLUSTER_PAGE, "bigint, timestamptz, text, text, text", "'f1', 'c1'"),
    ],
)
@pytest.mark.parametrize("position", ["'infinity', ''", "'2026-02-01 00:00:00+00', 'b500'"])
async def test_a_large_page_is_an_index_only_scan(many: Sql, index: str, query: str, types: str, ids: str, position: str) -> None:
    """A large page is read from the index alone, too."""
    page = await _plan(many, query, types, f"1000, {position}, {ids}")
    [limit] = page["Plans"]
    [scan] = limit["Plans"]
    assert (limit["Node Type"], scan["Node Type"], scan["Index Name"]) == ("Limit", "Index Only Scan", index)
    assert (scan["Heap Fetches"], scan["Actual Rows"], scan.get("Rows Removed by Filter", 0)) == (0, 1001, 0)
    assert _blocks(scan) < 70


@pytest.mark.parametrize("cluster_id", ["c1", "c2", "unknown"])
async def test_folder_of_a_cluster_is_one_index_entry(many: Sql, cluster_id: str) -> None:
    """The folder of a cluster is found by reading one index entry, however many backups the cluster has, in one folder or several."""
    limit, loops = _nested(await _plan(many, catalog.CLUSTER_FOLDERS, "text[]", f"ARRAY['{cluster_id}', '{cluster_id}']"))
    [scan] = limit["Plans"]
    assert (limit["Node Type"], scan["Node Type"], scan["Index Name"]) == ("Limit", "Index Only Scan", "backups_cluster_page")
    assert (scan["Actual Rows"], loops) == (0 if cluster_id == "unknown" else 1, 2)
    assert scan["Heap Fetches"] == 0
    assert _blocks(scan) <= 5 * 2


@pytest.mark.parametrize("ids", [1, 64])
async def test_get_is_by_the_primary_key(many: Sql, ids: int) -> None:
    """Each of several backups is found by the primary key."""
    arguments = ", ".join(f"'b{number * 1000}'" for number in range(1, ids + 1))
    scan = await _plan(many, catalog.BACKUPS, "text[]", f"ARRAY[{arguments}]")
    assert (scan["Node Type"], scan["Index Name"]) == ("Index Scan", "backups_pkey")
    assert scan["Actual Rows"] == ids
    assert _blocks(scan) <= 5 * ids
