"""Rows of the catalog that tests write directly."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import NamedTuple, TypeAlias

import asyncpg

OWNER = "backups_owner"


class Backup(NamedTuple):
    """A row of the catalog; times are aware and have whole microseconds."""

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


async def insert(sql: Sql, backups: list[Backup], *, tool: str = "manual") -> None:
    """Writes rows as anybody with SQL would."""
    await sql.copy_records_to_table("backups", records=[(*backup, tool) for backup in backups], columns=[*Backup._fields, "tool"])
