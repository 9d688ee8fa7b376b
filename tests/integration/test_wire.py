"""The column `wire`: protobuf's own encoding of every row, before and after a dump and restore."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import pb
from service.dev.embedded_postgres import EmbeddedPostgres
from tests.support.catalog import Backup, Sql, insert
from tests.support.strategies import backups

_PROPERTY = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

_CONTENTS = ("everything", "metadata only", "data only", "filtered")
_METHODS = {"base": b"\x40\x01", "incremental": b"\x40\x02", None: b""}  # field 8


def encoded(backup: Backup, *, method: bytes = b"") -> bytes:
    """Return a backup as an element of ListBackupsResponse.backups, encoded by protobuf.

    Args:
        method: the encoded field `method`.
    """
    message = pb.Backup(id=backup.id, folder_id=backup.folder_id, source_cluster_id=backup.source_cluster_id, size=backup.size)
    message.created_at.FromDatetime(backup.created_at)
    message.started_at.FromDatetime(backup.started_at)
    message.MergeFromString(method)
    return pb.ListBackupsResponse(backups=[message]).SerializeToString()


@given(st.lists(backups(), min_size=1, max_size=50, unique_by=lambda backup: backup.id))
@_PROPERTY
async def test_equal_to_protobuf(sql: Sql, rows: list[Backup]) -> None:
    """Over the whole range of every column, `wire` equals protobuf's encoding of the row."""
    await sql.execute("TRUNCATE backups")
    await insert(sql, rows)
    found = {row["id"]: row["wire"] for row in await sql.fetch("SELECT id, wire FROM backups")}
    assert found == {row.id: encoded(row) for row in rows}


@given(backups(), st.sampled_from(_CONTENTS), st.sampled_from([*_METHODS]))
@_PROPERTY
async def test_methods(sql: Sql, row: Backup, contents: str, method: str | None) -> None:
    """The method is encoded as field 8 if the backup contains everything, and omitted if it is partial or its method is unknown."""
    await sql.execute("TRUNCATE backups")
    columns: dict[str, Any] = row._asdict() | {"tool": "manual", "method": method, "contents": contents}
    await sql.copy_records_to_table("backups", records=[tuple(columns.values())], columns=[*columns])
    expected = _METHODS[method] if contents == "everything" else b""
    assert await sql.fetchval("SELECT wire FROM backups") == encoded(row, method=expected)


async def test_unknown_size(sql: Sql) -> None:
    """An unknown size is omitted like a size of 0."""
    now = datetime(2026, 11, 20, tzinfo=UTC)
    row = Backup("a", "f", now, "c", now, 0)
    await insert(sql, [row])
    await sql.execute("UPDATE backups SET size = NULL")
    assert await sql.fetchval("SELECT wire FROM backups") == encoded(row)


async def test_lengths_of_varints(sql: Sql) -> None:
    """Lengths and numbers on both sides of every step of a varint are encoded correctly."""
    now = datetime(2026, 11, 20, tzinfo=UTC)
    rows = [
        Backup(f"{length:02}-{character!a}"[:50], character * length, now, character * length, now, length)
        for length in range(1, 51)
        for character in ("x", "\\", "ж", "€", "\U0001f418", "\x01")
    ]
    rows += [Backup(f"bit-{bit}-{step}", "f", now, "c", now, 2**bit + step) for bit in range(1, 53) for step in (-1, 0, 1)]
    rows.append(Backup("largest", "f", now, "c", now, 2**53 - 1))
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for second in (0, 1, 127, 128, 16383, 16384, 2**31, 2**32, 2**35):
        rows.append(Backup(f"s-{second}", "f", epoch + timedelta(seconds=second), "c", epoch, 0))
    await insert(sql, rows)
    found = {row["id"]: row["wire"] for row in await sql.fetch("SELECT id, wire FROM backups")}
    assert found == {row.id: encoded(row) for row in rows}


async def test_time_zone(import_url: str) -> None:
    """The encoding does not depend on the session's time zone."""
    connection = await asyncpg.connect(import_url, server_settings={"timezone": "Africa/Monrovia"})
    # In 1971 this zone was 44 minutes and 30 seconds behind UTC.
    row = Backup("a", "f", datetime(1971, 1, 1, tzinfo=UTC), "c", datetime(1970, 6, 1, tzinfo=UTC), 1)
    await insert(connection, [row])
    assert await connection.fetchval("SELECT wire FROM backups") == encoded(row)
    await connection.close()


async def test_dump_and_restore(postgres: EmbeddedPostgres, sql: Sql, owner_url: str, empty_database_url: str) -> None:
    """A dump of the catalog restores in another database with equal bytes of `wire`, which the restore computes again."""
    now = datetime(2026, 11, 20, 1, 2, 3, 456789, tzinfo=UTC)
    await insert(sql, [Backup(f"b{number}", "папка\\", now, "c", now - timedelta(hours=number), 2**number) for number in range(53)])
    await sql.execute("UPDATE backups SET method = 'incremental', needs = '{b0,b1}' WHERE size > 2")

    dump = subprocess.run([postgres.program("pg_dump"), "-d", owner_url], capture_output=True, check=True).stdout
    restore: list[str | Path] = [postgres.program("psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database_url]
    subprocess.run(restore, input=dump, stdout=subprocess.DEVNULL, check=True)

    restored = await asyncpg.connect(empty_database_url)
    query = "SELECT id, wire FROM backups ORDER BY id"
    assert await restored.fetch(query) == await sql.fetch(query)
    assert await restored.fetchval("SELECT count(*) FROM backups") == 53
    await restored.close()
