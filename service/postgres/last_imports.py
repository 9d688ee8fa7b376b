"""The table `imports`: of each cluster and tool, the last import and the last completed backup.

A cluster costs one row here and one look-up by primary key, however many backups it has. Rows that nobody imported are not in it.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from service.postgres.database import Database

# A cluster's size and duration by primary key. LIMIT keeps the planner from joining the tables, and so from reading all of `backups`.
_LAST = "LEFT JOIN LATERAL (SELECT started_at, size FROM backups WHERE id = last_backup_id LIMIT 1) AS last ON true"
_COLUMNS = """
    folder_id, source_cluster_id, tool, imported_at, backups, last_backup_id, last_created_at,
    last_created_at - started_at AS last_duration, size AS last_size"""

_IMPORTED = f"""
    SELECT {_COLUMNS}
    FROM imports {_LAST}
    WHERE ($1::text IS NULL OR folder_id = $1) AND ($2::text IS NULL OR source_cluster_id = $2)
    ORDER BY folder_id, source_cluster_id, tool"""

_OLDEST = f"""
    SELECT {_COLUMNS}, total
    FROM (
      SELECT *, count(*) OVER () AS total FROM imports
      ORDER BY last_created_at NULLS FIRST, source_cluster_id, tool
      LIMIT $1) AS imports
    {_LAST}"""


class Imported(NamedTuple):
    """What the catalog has of a cluster by one tool; the last backup's facts are None where there is none (any more)."""

    folder_id: str
    source_cluster_id: str
    tool: str
    imported_at: datetime
    """When the last import began, also if it changed nothing."""
    backups: int
    """How many it left in the catalog."""
    last_backup_id: str | None
    last_created_at: datetime | None
    last_duration: timedelta | None
    last_size: int | None
    """Bytes."""


class Oldest(NamedTuple):
    """Those whose last backup is oldest."""

    kept: list[Imported]
    left_out: int


async def imported(database: Database, *, folder_id: str | None, cluster_id: str | None) -> list[Imported]:
    """All of them, or a folder's, or a cluster's; by folder, cluster and tool.

    Raises:
        CatalogUnavailable: see `Database.fetch`.
    """
    return [Imported(*row) for row in await database.fetch(_IMPORTED, folder_id, cluster_id)]


async def oldest(database: Database, *, limit: int) -> Oldest:
    """At most so many, those first that have no backup, then those whose last one is oldest.

    Raises:
        CatalogUnavailable: see `Database.fetch`.
    """
    rows = await database.fetch(_OLDEST, limit)
    return Oldest([Imported(*tuple(row)[:-1]) for row in rows], left_out=rows[0]["total"] - len(rows) if rows else 0)
