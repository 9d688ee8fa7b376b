"""Rows of the catalog that tests insert and compare."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias

import asyncpg

from service import pb

OWNER = "backups_owner"
TABLES = ("backups", "imports", "attempts", "freshness")
"""Tables with rows of clusters."""


class Backup(NamedTuple):
    """A row of the catalog. Times are aware and have microseconds."""

    id: str
    folder_id: str
    created_at: datetime
    """When the backup was completed."""
    source_cluster_id: str
    started_at: datetime
    size: int
    """Bytes."""


Sql: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
AddBackups = Callable[..., Awaitable[list[Backup]]]


def row(backup: pb.Backup) -> Backup:
    """Return the row of a backup that the API returned."""
    created_at, started_at = backup.created_at.ToDatetime(UTC), backup.started_at.ToDatetime(UTC)
    return Backup(backup.id, backup.folder_id, created_at, backup.source_cluster_id, started_at, backup.size)


async def insert(sql: Sql, backups: list[Backup], *, tool: str = "manual") -> None:
    """Insert rows without an import."""
    await sql.copy_records_to_table("backups", records=[(*backup, tool) for backup in backups], columns=[*Backup._fields, "tool"])
