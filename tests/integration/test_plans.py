"""How PostgreSQL finds what the service asks for: the plans, over a table of some size."""

import json
from typing import Any

import pytest

from service.postgres import catalog
from tests.support.catalog import Sql


@pytest.fixture(name="many")
async def _many(sql: Sql) -> Sql:
    """100,000 backups in ten folders, vacuumed as after an import."""
    await sql.execute("""
        INSERT INTO backups (id, folder_id, created_at, source_cluster_id, started_at, size, tool)
        SELECT 'b' || n, 'f' || n % 10, '2026-01-01 00:00:00+00'::timestamptz + n * interval '1 minute', 'c' || n % 100,
               '2026-01-01 00:00:00+00', n, 'manual'
        FROM generate_series(1, 100000) AS n""")
    await sql.execute("VACUUM (ANALYZE) backups")
    await sql.execute("SET plan_cache_mode = force_generic_plan")  # what a prepared statement comes to use
    return sql


async def _plan(sql: Sql, query: str, types: str, arguments: str) -> dict[str, Any]:
    await sql.execute(f"PREPARE planned ({types}) AS {query}")
    [row] = await sql.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE planned ({arguments})")
    plan: dict[str, Any] = json.loads(row[0])[0]["Plan"]
    return plan


@pytest.mark.parametrize(
    ("query", "types", "arguments"),
    [
        (catalog._FIRST_PAGE, "text, bigint", "'f1', 1000"),
        (catalog._NEXT_PAGE, "text, bigint, timestamptz, text", "'f1', 1000, '2026-02-01 00:00:00+00', 'b500'"),
    ],
)
async def test_a_page_is_an_index_only_scan(many: Sql, query: str, types: str, arguments: str) -> None:
    """A page reads its rows from the index alone, in order, and not one more than it answers with."""
    limit = await _plan(many, query, types, arguments)
    [scan] = limit["Plans"]
    assert (limit["Node Type"], scan["Node Type"], scan["Index Name"]) == ("Limit", "Index Only Scan", "backups_page")
    assert scan["Heap Fetches"] == 0
    assert scan["Actual Rows"] == 1001
    assert scan.get("Rows Removed by Filter", 0) == 0
    assert scan["Shared Hit Blocks"] + scan["Shared Read Blocks"] < 70  # the plain index would read a block of the table for each row


@pytest.mark.parametrize("folders", ["NULL", "ARRAY['f1', 'f2']"])
async def test_get_is_by_the_primary_key(many: Sql, folders: str) -> None:
    """One backup is found by the primary key."""
    scan = await _plan(many, catalog._GET, "text, text[]", f"'b77', {folders}")
    assert (scan["Node Type"], scan["Index Name"]) == ("Index Scan", "backups_pkey")
    assert scan["Shared Hit Blocks"] + scan["Shared Read Blocks"] <= 5
