"""Anyone with SQL can write rows: the table's constraints, not the service, keep out what the API cannot say."""

import asyncpg
import pytest

from tests.support.catalog import Sql

_INSERT = """
    INSERT INTO backups (id, folder_id, created_at, source_cluster_id, started_at, size, tool)
    VALUES ({id}, {folder_id}, {created_at}, {source_cluster_id}, {started_at}, {size}, {tool})"""
_GOOD = {
    "id": "'b'",
    "folder_id": "'f'",
    "created_at": "'2026-11-20 01:00:00+00'",
    "source_cluster_id": "'c'",
    "started_at": "'2026-11-20 00:00:00+00'",
    "size": "1",
    "tool": "'manual'",
}


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
        ("folder_id", "'*'", "backups_folder_id"),
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
        ("tool", "''", "backups_tool"),
        ("tool", "'Walg'", "backups_tool"),
    ],
)
async def test_refused(sql: Sql, column: str, value: str, constraint: str) -> None:
    """A row that the API could not say is refused by the constraint that says so, not by an accident of the encoder."""
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await sql.execute(_INSERT.format(**_GOOD | {column: value}))
    assert caught.value.constraint_name == constraint


@pytest.mark.parametrize("column", list(_GOOD))
async def test_null_refused(sql: Sql, column: str) -> None:
    """No column may be null."""
    with pytest.raises(asyncpg.NotNullViolationError):
        await sql.execute(_INSERT.format(**_GOOD | {column: "NULL"}))


async def test_wire_cannot_be_written(sql: Sql) -> None:
    """Nobody can make a row say one thing and its encoding another."""
    await sql.execute(_INSERT.format(**_GOOD))
    with pytest.raises(asyncpg.GeneratedAlwaysError):
        await sql.execute(r"UPDATE backups SET wire = '\x00'")


async def test_order_is_by_bytes(sql: Sql) -> None:
    """Ids are ordered by their bytes, whatever the machine's locale."""
    ids = ["a", "B", "b", "A", "a-1", "a1", "_", "~", "!"]
    for backup_id in ids:
        await sql.execute(_INSERT.format(**_GOOD | {"id": f"'{backup_id}'"}))
    assert [row["id"] for row in await sql.fetch("SELECT id FROM backups ORDER BY id")] == sorted(ids)
