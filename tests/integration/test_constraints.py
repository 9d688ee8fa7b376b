"""Constraints of the tables: every value that the API or the read model cannot represent is rejected by PostgreSQL."""

import re

import asyncpg
import pytest

from service import contract
from service.backup import ID_MAX_LENGTH
from tests.support.catalog import Sql

_VALID = {
    "id": "'b'",
    "folder_id": "'f'",
    "created_at": "'2026-11-20 01:00:00+00'",
    "source_cluster_id": "'c'",
    "started_at": "'2026-11-20 00:00:00+00'",
    "size": "1",
    "tool": "'manual'",
    "name": "'n'",
    "method": "'base'",
    "contents": "'everything'",
    "database": "'d'",
    "permanent": "false",
    "needs": "'{n0}'",
    "chain": "'complete'",
    "missing_since": "now()",
}
_NULLABLE = {"size", "name", "method", "permanent", "missing_since"}


def _insert(**changes: str) -> str:
    row = _VALID | changes
    return f"INSERT INTO backups ({', '.join(row)}) VALUES ({', '.join(row.values())})"


@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("id", "''", "backups_id"),
        ("id", "repeat('x', 51)", "backups_id"),
        ("id", "'a b'", "backups_id"),
        ("id", "E'a\\n'", "backups_id"),
        ("id", "'ж'", "backups_id"),
        ("id", "E'\\x7f'", "backups_id"),
        ("folder_id", "''", "backups_folder_id"),
        ("folder_id", "repeat('ж', 51)", "backups_folder_id"),
        ("source_cluster_id", "''", "backups_source_cluster_id"),
        ("source_cluster_id", "repeat('x', 51)", "backups_source_cluster_id"),
        ("created_at", "'infinity'", "backups_times"),
        ("created_at", "'10000-01-01 00:00:00+00'", "backups_times"),
        ("created_at", "'9999-12-31 23:59:59.999999+00'", "backups_times"),
        ("created_at", "'2026-11-19 23:59:59.999999+00'", "backups_times"),
        ("started_at", "'-infinity'", "backups_times"),
        ("started_at", "'1969-12-31 23:59:59.999999+00'", "backups_times"),
        ("started_at", "'4713-01-01 00:00:00+00 BC'", "backups_times"),
        ("size", "-1", "backups_size"),
        ("size", "9007199254740992", "backups_size"),
        ("tool", "''", "backups_tool"),
        ("tool", "'Walg'", "backups_tool"),
        ("name", "''", "backups_name"),
        ("name", "repeat('x', 101)", "backups_name"),
        ("method", "'full'", "backups_method"),
        ("contents", "''", "backups_contents"),
        ("contents", "'Everything'", "backups_contents"),
        ("database", "repeat('x', 256)", "backups_database"),
        ("needs", "array_fill('n'::text, ARRAY[1001])", "backups_needs"),
        ("chain", "'ok'", "backups_chain"),
    ],
)
async def test_rejected_values(sql: Sql, column: str, value: str, constraint: str) -> None:
    """A value that the API cannot represent is rejected by the constraint of its column, not by an error of the encoder."""
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await sql.execute(_insert(**{column: value}))
    assert caught.value.constraint_name == constraint


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("backups", _VALID),
        ("imports", {"tool": "'walg'", "imported_at": "now()", "entries": "0", "skipped": "0", "unusable": "0", "excluded": "0"}),
        ("attempts", {"tool": "'walg'", "database": "''", "name": "'n'", "started_at": "now()", "state": "'failed'"}),
        ("freshness", {"tool": "'walg'", "database": "''"}),
    ],
)
async def test_folder_that_means_all(sql: Sql, table: str, row: dict[str, str]) -> None:
    """No table accepts the folder `*`, which means all folders in a token."""
    row = row | {"source_cluster_id": "'c'", "folder_id": "'*'"}
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await sql.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})")
    assert caught.value.constraint_name == f"{table}_folder_id"


@pytest.mark.parametrize("column", sorted(_VALID.keys() - _NULLABLE))
async def test_null_rejected(sql: Sql, column: str) -> None:
    """A column without a meaning for NULL rejects NULL."""
    with pytest.raises(asyncpg.NotNullViolationError):
        await sql.execute(_insert(**{column: "NULL"}))


@pytest.mark.parametrize("column", sorted(_NULLABLE))
async def test_null_accepted(sql: Sql, column: str) -> None:
    """A column with values that a tool may not record accepts NULL."""
    await sql.execute(_insert(**{column: "NULL"}))
    assert await sql.fetchval(f"SELECT {column} FROM backups") is None


async def test_wire_cannot_be_written(sql: Sql) -> None:
    """No statement can make the encoding differ from the row."""
    await sql.execute(_insert())
    with pytest.raises(asyncpg.GeneratedAlwaysError):
        await sql.execute(r"UPDATE backups SET wire = '\x00'")


async def test_order_is_by_bytes(sql: Sql) -> None:
    """Ids are ordered by their bytes in every locale."""
    ids = ["a", "B", "b", "A", "a-1", "a1", "_", "~", "!"]
    for backup_id in ids:
        await sql.execute(_insert(id=f"'{backup_id}'"))
    assert [row["id"] for row in await sql.fetch("SELECT id FROM backups ORDER BY id")] == sorted(ids)


@pytest.mark.parametrize(
    ("constraint", "limit"),
    [
        ("backups_id", ID_MAX_LENGTH),
        ("backups_folder_id", contract.FOLDER_ID_MAX_LENGTH),
        ("backups_source_cluster_id", contract.CLUSTER_ID_MAX_LENGTH),
        ("imports_folder_id", contract.FOLDER_ID_MAX_LENGTH),
        ("imports_source_cluster_id", contract.CLUSTER_ID_MAX_LENGTH),
    ],
)
async def test_lengths_equal_the_contract(sql: Sql, constraint: str, limit: int) -> None:
    """The CHECK constraints allow the lengths that the contract allows, and no more."""
    definition = await sql.fetchval("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = $1", constraint)
    assert re.findall(r"<= (\d+)", definition) == [str(limit)], definition
