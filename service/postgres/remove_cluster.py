"""Removal of a decommissioned cluster: the backups of every tool, and the records of their imports."""

from datetime import datetime
from typing import NamedTuple

import asyncpg

from service.errors import RemovalRejected
from service.postgres.session import lock_cluster, open_session, vacuum_after

_PREVIEW = """
    SELECT folder_id, tool, backups, imports, last_created_at
    FROM (SELECT folder_id, tool, count(*) AS backups, max(created_at) AS last_created_at FROM backups
          WHERE source_cluster_id = $1 AND ($2::text IS NULL OR folder_id = $2) GROUP BY folder_id, tool) AS removed
    FULL JOIN
         (SELECT folder_id, tool, 1 AS imports FROM imports
          WHERE source_cluster_id = $1 AND ($2::text IS NULL OR folder_id = $2)) AS recorded USING (folder_id, tool)
    ORDER BY folder_id, tool"""

_DELETE = tuple(
    f"DELETE FROM {table} WHERE source_cluster_id = $1 AND ($2::text IS NULL OR folder_id = $2)"  # noqa: S608  # names of this module
    for table in ("backups", "imports", "attempts", "freshness")
)


class Removal(NamedTuple):
    """Rows of a cluster to remove, in one folder and by one tool."""

    folder_id: str
    tool: str
    backups: int
    was_imported: bool
    """True if there is a record of an import."""
    last_created_at: datetime | None


class Cluster(NamedTuple):
    """A cluster, in all folders or in one."""

    cluster_id: str
    folder_id: str | None


async def removal_preview(url: str, cluster: Cluster) -> list[Removal]:
    """Return the rows that `remove_cluster` would remove.

    Raises:
        RemovalRejected: the catalog has no rows of this cluster.
        CatalogNotWritable: the role or the server of the URL cannot write.
        CatalogUnavailable: PostgreSQL cannot be used.
    """
    async with open_session(url) as connection:
        return await _preview(connection, cluster)


async def remove_cluster(url: str, cluster: Cluster, *, expected: list[Removal]) -> None:
    """Remove the expected rows in one transaction. Imports of this cluster wait until it ends.

    Raises:
        RemovalRejected: the catalog no longer has exactly the expected rows; nothing is removed, as with every other error.
        CatalogNotWritable: the role or the server of the URL cannot write.
        CatalogUnavailable: PostgreSQL cannot be used.
    """
    async with open_session(url) as connection:
        async with connection.transaction():
            await lock_cluster(connection, cluster.cluster_id)
            if await _preview(connection, cluster) != expected:
                raise RemovalRejected(
                    f"nothing was removed: the catalog's rows of cluster {cluster.cluster_id} changed after the preview. "
                    "Run the command again"
                )
            for statement in _DELETE:
                await connection.execute(statement, *cluster)
        await vacuum_after(connection, sum(each.backups for each in expected))


async def _preview(connection: asyncpg.Connection, cluster: Cluster) -> list[Removal]:
    rows = await connection.fetch(_PREVIEW, *cluster)
    if not rows:
        folder = f" in folder {cluster.folder_id}" if cluster.folder_id else ""
        raise RemovalRejected(f"the catalog has no rows of cluster {cluster.cluster_id}{folder}")
    return [Removal(row["folder_id"], row["tool"], row["backups"] or 0, bool(row["imports"]), row["last_created_at"]) for row in rows]
