"""Removing a cluster that is no more: all of its backups, whatever tool made them, and the record of their imports."""

from datetime import datetime
from typing import NamedTuple

import asyncpg

from service.errors import ForgetRefused
from service.postgres.session import lock_cluster, open_session, vacuum_after

_FORGOTTEN = """
    SELECT folder_id, tool, backups, imports, last_created_at
    FROM (SELECT folder_id, tool, count(*) AS backups, max(created_at) AS last_created_at FROM backups
          WHERE source_cluster_id = $1 AND ($2::text IS NULL OR folder_id = $2) GROUP BY folder_id, tool) AS removed
    FULL JOIN
         (SELECT folder_id, tool, 1 AS imports FROM imports
          WHERE source_cluster_id = $1 AND ($2::text IS NULL OR folder_id = $2)) AS recorded USING (folder_id, tool)
    ORDER BY folder_id, tool"""

_BACKUPS = "DELETE FROM backups WHERE source_cluster_id = $1 AND ($2::text IS NULL OR folder_id = $2)"
_IMPORTS = "DELETE FROM imports WHERE source_cluster_id = $1 AND ($2::text IS NULL OR folder_id = $2)"


class Forgotten(NamedTuple):
    """What goes, or would go, of a cluster in one folder by one tool."""

    folder_id: str
    tool: str
    backups: int
    was_imported: bool
    last_created_at: datetime | None


class Cluster(NamedTuple):
    """Whose rows go: all, or those in one folder."""

    cluster_id: str
    folder_id: str | None


async def what_goes(url: str, cluster: Cluster) -> list[Forgotten]:
    """What `forget` would remove.

    Raises:
        ForgetRefused: there is nothing of this cluster.
        CatalogUnavailable: PostgreSQL is gone, going or too slow.
    """
    async with open_session(url) as connection:
        return await _what_goes(connection, cluster)


async def forget(url: str, cluster: Cluster, *, expected: list[Forgotten]) -> None:
    """Removes what was expected, in one transaction; imports of this cluster wait meanwhile.

    Raises:
        ForgetRefused: there is something else than that by now; nothing is removed, as with every other error.
        CatalogUnavailable: PostgreSQL is gone, going or too slow.
    """
    async with open_session(url) as connection:
        async with connection.transaction():
            await lock_cluster(connection, cluster.cluster_id)
            if await _what_goes(connection, cluster) != expected:
                raise ForgetRefused(f"the catalog has changed meanwhile: nothing of cluster {cluster.cluster_id} was removed; look again")
            await connection.execute(_BACKUPS, *cluster)
            await connection.execute(_IMPORTS, *cluster)
        await vacuum_after(connection, sum(each.backups for each in expected))


async def _what_goes(connection: asyncpg.Connection, cluster: Cluster) -> list[Forgotten]:
    rows = await connection.fetch(_FORGOTTEN, *cluster)
    if not rows:
        where = f" in folder {cluster.folder_id}" if cluster.folder_id else ""
        raise ForgetRefused(f"the catalog has nothing of cluster {cluster.cluster_id}{where}")
    return [Forgotten(row["folder_id"], row["tool"], row["backups"] or 0, bool(row["imports"]), row["last_created_at"]) for row in rows]
