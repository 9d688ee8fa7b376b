"""Queries of the API: one backup, a page of a folder's or a cluster's backups."""

import asyncio

import asyncpg

from service.backup import TIME_MIN, Page, Position, is_backup_id
from service.errors import BackupNotFound
from service.postgres.database import Database

GET = "SELECT folder_id, wire FROM backups WHERE id = $1"

# LIMIT is one more than the page: an extra row means that there is a next page.
FIRST_PAGE = """
    SELECT wire FROM backups
    WHERE folder_id = $1
    ORDER BY created_at DESC, id DESC
    LIMIT $2 + 1"""

NEXT_PAGE = """
    SELECT wire FROM backups
    WHERE folder_id = $1 AND (created_at, id) < ($3, $4)
    ORDER BY created_at DESC, id DESC
    LIMIT $2 + 1"""

# Imports keep all backups of a cluster in one folder. If other writers use several, the first one in byte order counts.
CLUSTER_FOLDER = "SELECT folder_id FROM backups WHERE source_cluster_id = $1 ORDER BY folder_id LIMIT 1"

FIRST_CLUSTER_PAGE = """
    SELECT wire FROM backups
    WHERE source_cluster_id = $1 AND folder_id = $2
    ORDER BY created_at DESC, id DESC
    LIMIT $3 + 1"""

NEXT_CLUSTER_PAGE = """
    SELECT wire FROM backups
    WHERE source_cluster_id = $1 AND folder_id = $2 AND (created_at, id) < ($4, $5)
    ORDER BY created_at DESC, id DESC
    LIMIT $3 + 1"""

# Held or requested: a migration step locks the table for a moment, and waits for its readers first.
_EXCLUSIVE_LOCK = """
    SELECT EXISTS (
      SELECT FROM pg_locks
      WHERE relation = to_regclass('backups') AND mode = 'AccessExclusiveLock'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS locked"""

_EMPTY = Page([], has_more=False)

# Only two large pages are read at once. Otherwise a client that reads many of them would delay small calls, and keep the event loop too
# busy to reject its other calls.
_LARGE_PAGE, _LARGE_PAGES_AT_ONCE = 200, 2


class Catalog:
    """Reads backups from the column `wire`, as encoded messages of the API, so that no Python code runs for each row."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._large_pages = asyncio.Semaphore(_LARGE_PAGES_AT_ONCE)

    async def probe(self) -> None:
        """Run every statement of this class, with arguments that match no row, to find missing tables, columns and rights.

        While the table is locked, the statements are not run: they would wait for the lock as calls do, and calls still succeed.

        Raises:
            CatalogUnavailable: see `Database.probe`.
        """
        [row] = await self._database.probe(_EXCLUSIVE_LOCK)
        if row["locked"]:
            return
        await self._database.probe(GET, "")
        await self._database.probe(FIRST_PAGE, "", 0)
        await self._database.probe(NEXT_PAGE, "", 0, TIME_MIN, "")
        await self._database.probe(CLUSTER_FOLDER, "")
        await self._database.probe(FIRST_CLUSTER_PAGE, "", "", 0)
        await self._database.probe(NEXT_CLUSTER_PAGE, "", "", 0, TIME_MIN, "")

    async def get(self, backup_id: str, *, folders: frozenset[str] | None) -> bytes:
        """Return a backup as an element of `ListBackupsResponse.backups`, with its tag and length.

        Hidden and absent backups raise the same error after the same time: a set lookup does not depend on the number of folders
        (docs/decisions/0009-folder-comparison.md).

        Args:
            backup_id: any text that a client sent.
            folders: those that the caller may read; None means all.

        Raises:
            BackupNotFound: these folders have no such backup.
            CatalogUnavailable: see `Database.fetch`.
        """
        if not is_backup_id(backup_id):  # PostgreSQL rejects texts with NUL
            raise BackupNotFound(backup_id)
        rows = await self._database.fetch(GET, backup_id)
        if not rows or (folders is not None and rows[0][0] not in folders):
            raise BackupNotFound(backup_id)
        return bytes(rows[0][1])

    async def page(self, folder_id: str, *, after: Position | None, size: int) -> Page:
        """Return at most `size` of a folder's backups after a position, newest first; None is the position before the newest.

        Raises:
            CatalogUnavailable: see `Database.fetch`.
        """
        if "\0" in folder_id:  # PostgreSQL rejects it, so no folder has this id
            return _EMPTY
        if after is None:
            return await self._page(size, FIRST_PAGE, folder_id, size)
        return await self._page(size, NEXT_PAGE, folder_id, size, after.created_at, after.id)

    async def cluster_page(self, cluster_id: str, *, folders: frozenset[str] | None, after: Position | None, size: int) -> Page:
        """Return at most `size` of a cluster's backups after a position, newest first; None is the position before the newest.

        The page has the backups in the cluster's folder only. An unknown cluster and one in a hidden folder give an empty page after
        the same time: both cost one lookup of the folder, and a set lookup does not depend on the number of folders.

        Args:
            cluster_id: any text that a client sent.
            folders: those that the caller may read; None means all.
            after: the position.
            size: the number of backups.

        Raises:
            CatalogUnavailable: see `Database.fetch`.
        """
        if "\0" in cluster_id:
            return _EMPTY
        found = await self._database.fetch(CLUSTER_FOLDER, cluster_id)
        if not found or (folders is not None and found[0][0] not in folders):
            return _EMPTY
        if after is None:
            return await self._page(size, FIRST_CLUSTER_PAGE, cluster_id, found[0][0], size)
        return await self._page(size, NEXT_CLUSTER_PAGE, cluster_id, found[0][0], size, after.created_at, after.id)

    async def _page(self, size: int, query: str, *arguments: object) -> Page:
        if size < _LARGE_PAGE:
            return _page(await self._database.fetch(query, *arguments), size)
        async with self._large_pages:
            return _page(await self._database.fetch(query, *arguments), size)


def _page(rows: list[asyncpg.Record], size: int) -> Page:
    # Access by name would take 1.5 times as long as by position.
    return Page([row[0] for row in rows[:size]], has_more=len(rows) > size)
