"""Read model of freshness: the last import and the last restorable backup of each cluster, tool and database.

Each row costs two look-ups of a backup by primary key, for any number of backups. Rows that no import wrote are not included.
"""

from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from service.postgres.database import Database

RUNNING_MAX = timedelta(hours=48)
"""A run that started earlier and is still recorded as running has crashed."""


class Freshness(NamedTuple):
    """The last backups of a cluster, by one tool, of one database.

    "Restorable" means: the backup contains everything, its chain is complete, and the tool still lists it. Facts of a last backup are None
    if there is none. Its duration, size and method are also None if its row was deleted after the import.
    """

    folder_id: str
    source_cluster_id: str
    tool: str
    database: str | None
    """Empty for backups of the whole cluster; None if the listing has no database at all."""
    imported_at: datetime
    """Time at which the last listing had been read, even if the import changed nothing."""
    entries: int
    """Entries of the last listing."""
    skipped: int
    """Entries that were not imported, for any reason."""
    unusable: int
    """Skipped entries with values that the catalog cannot hold."""
    excluded: int
    """Skipped entries that the operator left out by name."""
    backups: int
    """Backups in the catalog, of any state."""
    restorable: int
    partial: int
    broken: int
    """Backups with a broken chain."""
    unknown: int
    """Backups with an unknown chain."""
    missing: int
    """Backups that the listing no longer has."""
    last_backup_id: str | None
    """The last restorable backup."""
    last_created_at: datetime | None
    last_base_id: str | None
    """The last restorable backup that is not an increment."""
    last_base_created_at: datetime | None
    last_partial_id: str | None
    """The last backup with less than everything."""
    last_partial_created_at: datetime | None
    failed_attempts: int | None
    """Failed and crashed runs since the last restorable backup; None if the tool records no attempts."""
    last_failed_name: str | None
    """The newest of them."""
    last_failed_started_at: datetime | None
    running_name: str | None
    """The run that was recorded as running at the last import: see `run_state`."""
    running_started_at: datetime | None
    last_duration: timedelta | None
    """Of the last restorable backup, as the next two."""
    last_size: int | None
    """Bytes, or None if unknown."""
    last_method: Literal["base", "incremental"] | None
    last_base_duration: timedelta | None
    last_base_size: int | None

    def run_state(self, now: datetime) -> Literal["running", "crashed"] | None:
        """Return the state of the run that was recorded as running, or None if there is none."""
        if self.running_started_at is None:
            return None
        return "running" if now - self.running_started_at < RUNNING_MAX else "crashed"


class Stalest(NamedTuple):
    """The rows whose last restorable backup is oldest, or that have none."""

    kept: list[Freshness]
    left_out: int


class Attempt(NamedTuple):
    """A run of a tool that did not complete a backup."""

    folder_id: str
    source_cluster_id: str
    tool: str
    database: str
    name: str
    started_at: datetime
    state: Literal["failed", "running", "crashed"]


# Facts that are read from `backups`. All others are columns of `imports` or `freshness`, with the names of `Freshness`.
_JOINED = {
    "last_duration": "last_created_at - last.started_at",
    "last_size": "last.size",
    "last_method": "last.method",
    "last_base_duration": "last_base_created_at - base.started_at",
    "last_base_size": "base.size",
}

# LIMIT prevents the planner from joining the tables, and therefore from reading all of `backups`.
_LAST = """
    LEFT JOIN LATERAL (SELECT started_at, size, method FROM backups WHERE id = last_backup_id LIMIT 1) AS last ON true
    LEFT JOIN LATERAL (SELECT started_at, size FROM backups WHERE id = last_base_id LIMIT 1) AS base ON true"""

# A gpbackup history without any row has an import and no database. Its counts are 0.
_COUNTS = ("backups", "restorable", "partial", "broken", "unknown", "missing")
_STORED = {"folder_id": "imports.folder_id"} | {count: f"coalesce({count}, 0) AS {count}" for count in _COUNTS}
_ROWS = f"""
    SELECT {", ".join(_STORED.get(field, field) for field in Freshness._fields if field not in _JOINED)}
    FROM imports LEFT JOIN freshness USING (source_cluster_id, tool)"""
_COLUMNS = ", ".join(f"{_JOINED[field]} AS {field}" if field in _JOINED else field for field in Freshness._fields)

_ALL = f"""
    SELECT {_COLUMNS}
    FROM ({_ROWS}) AS listed {_LAST}
    WHERE ($1::text IS NULL OR folder_id = $1) AND ($2::text IS NULL OR source_cluster_id = $2)
    ORDER BY folder_id, source_cluster_id, tool, database"""

_STALEST = f"""
    SELECT {_COLUMNS}, total
    FROM (
      SELECT *, count(*) OVER () AS total FROM ({_ROWS}) AS all_rows
      ORDER BY last_created_at NULLS FIRST, source_cluster_id, tool, database
      LIMIT $1) AS listed
    {_LAST}"""


async def freshness(database: Database, *, folder_id: str | None, cluster_id: str | None) -> list[Freshness]:
    """Return the rows of all clusters, of a folder or of a cluster, ordered by folder, cluster, tool and database.

    Raises:
        CatalogUnavailable: see `Database.fetch`.
    """
    return [Freshness(*row) for row in await database.fetch(_ALL, folder_id, cluster_id)]


async def stalest(database: Database, *, limit: int) -> Stalest:
    """Return at most `limit` rows: first those without a restorable backup, then those whose last one is oldest.

    Raises:
        CatalogUnavailable: see `Database.fetch`.
    """
    rows = await database.fetch(_STALEST, limit)
    return Stalest([Freshness(*tuple(row)[:-1]) for row in rows], left_out=rows[0]["total"] - len(rows) if rows else 0)


_ATTEMPTS = f"""
    SELECT folder_id, source_cluster_id, tool, database, name, started_at,
      CASE WHEN state = 'running' AND started_at <= now() - interval '{RUNNING_MAX.days} days' THEN 'crashed' ELSE state END AS state
    FROM attempts
    WHERE ($1::text IS NULL OR folder_id = $1) AND ($2::text IS NULL OR source_cluster_id = $2)
    ORDER BY folder_id, source_cluster_id, tool, database, started_at DESC, name DESC"""


async def attempts(database: Database, *, folder_id: str | None, cluster_id: str | None) -> list[Attempt]:
    """Return the recorded attempts of all clusters, of a folder or of a cluster, newest first within a database.

    Raises:
        CatalogUnavailable: see `Database.fetch`.
    """
    return [Attempt(*row) for row in await database.fetch(_ATTEMPTS, folder_id, cluster_id)]
