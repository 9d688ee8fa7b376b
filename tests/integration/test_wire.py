"""The column `wire` is protobuf's own encoding, whatever the row, and survives a dump."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import pb
from service.dev.embedded_postgres import EmbeddedPostgres
from tests.support.catalog import Backup, Sql, insert
from tests.support.strategies import backups


def encoded(backup: Backup) -> bytes:
    """A backup as an element of ListBackupsResponse.backups, by protobuf itself."""
    message = pb.Backup(id=backup.id, folder_id=backup.folder_id, source_cluster_id=backup.source_cluster_id, size=backup.size)
    message.created_at.FromDatetime(backup.created_at)
    message.started_at.FromDatetime(backup.started_at)
    return pb.ListBackupsResponse(backups=[message]).SerializeToString()


@given(st.lists(backups(), min_size=1, max_size=50, unique_by=lambda backup: backup.id))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_equal_to_protobuf(sql: Sql, rows: list[Backup]) -> None:
    """Over the whole range of every column, `wire` equals what protobuf makes of the row, byte for byte."""
    await sql.execute("TRUNCATE backups")
    await insert(sql, rows)
    found = {row["id"]: row["wire"] for row in await sql.fetch("SELECT id, wire FROM backups")}
    assert found == {row.id: encoded(row) for row in rows}


async def test_lengths_at_the_steps_of_a_varint(sql: Sql) -> None:
    """Texts whose bytes, and rows whose length, need one or two bytes to count are encoded like any other."""
    now = datetime(2026, 11, 20, tzinfo=UTC)
    rows = [
        Backup(f"{length:02}-{character!a}"[:50], character * length, now, character * length, now, length)
        for length in range(1, 51)
        for character in ("x", "\\", "ж", "€", "\U0001f418", "\x01")
    ]
    rows += [Backup(f"bit-{bit}-{step}", "f", now, "c", now, 2**bit + step) for bit in range(1, 63) for step in (-1, 0, 1)]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for second in (0, 1, 127, 128, 16383, 16384, 2**31, 2**32, 2**35):
        rows.append(Backup(f"s-{second}", "f", epoch + timedelta(seconds=second), "c", epoch, 0))
    await insert(sql, rows)
    found = {row["id"]: row["wire"] for row in await sql.fetch("SELECT id, wire FROM backups")}
    assert found == {row.id: encoded(row) for row in rows}


async def test_under_another_time_zone(import_url: str) -> None:
    """The session's time zone changes nothing."""
    connection = await asyncpg.connect(import_url, server_settings={"timezone": "Africa/Monrovia"})
    row = Backup("a", "f", datetime(1971, 1, 1, tzinfo=UTC), "c", datetime(1970, 6, 1, tzinfo=UTC), 1)  # 44 minutes and a half behind then
    await insert(connection, [row])
    assert await connection.fetchval("SELECT wire FROM backups") == encoded(row)
    await connection.close()


async def test_dump_and_restore(postgres: EmbeddedPostgres, sql: Sql, owner_url: str, empty_database_url: str) -> None:
    """A dump of the catalog restores elsewhere, with every byte of `wire`, which the restore computes anew."""
    now = datetime(2026, 11, 20, 1, 2, 3, 456789, tzinfo=UTC)
    await insert(sql, [Backup(f"b{number}", "папка\\", now, "c", now - timedelta(hours=number), 2**number) for number in range(60)])

    dump = subprocess.run([postgres.program("pg_dump"), "-d", owner_url], capture_output=True, check=True).stdout
    restore: list[str | Path] = [postgres.program("psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database_url]
    subprocess.run(restore, input=dump, stdout=subprocess.DEVNULL, check=True)

    restored = await asyncpg.connect(empty_database_url)
    query = "SELECT id, wire FROM backups ORDER BY id"
    assert await restored.fetch(query) == await sql.fetch(query)
    assert await restored.fetchval("SELECT count(*) FROM backups") == 60
    await restored.close()
