"""Queries of the API: one backup, a page of a folder's or a cluster's backups. Each answers several calls together (batches.py)."""

from datetime import UTC, datetime

import asyncpg

from service.backup import Page, Position, is_backup_id
from service.errors import BackupNotFound
from service.postgres.batches import Batches
from service.postgres.database import Database

BACKUPS = "SELECT array_position($1, id), folder_id, wire FROM backups WHERE id = ANY ($1::text[])"

# Imports keep all backups of a cluster in one folder. If other writers use several, the first one in byte order counts.
CLUSTER_FOLDERS = """
    SELECT lookup.number, found.folder_id
    FROM unnest($1::text[]) WITH ORDINALITY AS lookup (cluster_id, number),
    LATERAL (
      SELECT folder_id FROM backups WHERE source_cluster_id = lookup.cluster_id ORDER BY folder_id LIMIT 1
    ) AS found"""

# One row: `elements` are the messages of a page and of one more backup, if there is one: then there is a next page. `lengths` are those
# of the page's last message and of the extra one, so that `_decode_page` can cut both off.
_PAGE_SQL = """
    SELECT string_agg(wire, ''::bytea) AS elements, (array_agg(octet_length(wire)))[{size} : {size} + 1]::text AS lengths
    FROM (
      SELECT wire FROM backups
      WHERE {where} AND (created_at, id) < ({last_at}, {last_id})
      ORDER BY created_at DESC, id DESC
      LIMIT {size} + 1
    ) AS backup
    """

# The planner allocates 2 MiB for this constant and frees them, once for each connection. From then on, glibc keeps the memory of a large
# page for the next one (mallopt(3), M_TRIM_THRESHOLD). Otherwise the page faults of each query would cost more than reading its rows.
_KEEP_MEMORY = "WHERE octet_length(repeat(repeat(' ', 1024), 2048)) > 0"

_ONE = {"size": "$1::int", "last_at": "$2", "last_id": "$3"}
_SEVERAL = {"size": "lookup.size::int", "last_at": "lookup.last_at::timestamptz", "last_id": "lookup.last_id"}

FOLDER_PAGE = _PAGE_SQL.format(where="folder_id = $4", **_ONE) + _KEEP_MEMORY
FOLDER_PAGES = f"""
    SELECT lookup.number, page.elements, page.lengths
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
      WITH ORDINALITY AS lookup (size, last_at, last_id, folder_id, number),
    LATERAL ({_PAGE_SQL.format(where="folder_id = lookup.folder_id", **_SEVERAL)}) AS page"""  # noqa: S608  # no input

_OF_CLUSTER = "folder_id = lookup.folder_id AND source_cluster_id = lookup.cluster_id"
CLUSTER_PAGE = _PAGE_SQL.format(where="folder_id = $4 AND source_cluster_id = $5", **_ONE) + _KEEP_MEMORY
CLUSTER_PAGES = f"""
    SELECT lookup.number, page.elements, page.lengths
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
      WITH ORDINALITY AS lookup (size, last_at, last_id, folder_id, cluster_id, number),
    LATERAL ({_PAGE_SQL.format(where=_OF_CLUSTER, **_SEVERAL)}) AS page"""  # noqa: S608  # no input

# Held or requested: a migration step locks the table for a moment, and waits for its readers first.
_EXCLUSIVE_LOCK = """
    SELECT EXISTS (
      SELECT FROM pg_locks
      WHERE relation = to_regclass('backups') AND mode = 'AccessExclusiveLock'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS locked"""

_EMPTY = Page(b"")
_NEWEST = Position(datetime.max.replace(tzinfo=UTC), "")  # before every backup

_LARGE_PAGE = 200
_BACKUPS_AT_ONCE, _PAGES_AT_ONCE = 64, 8


class Catalog:
    """Reads backups from the column `wire`, as encoded messages of the API, so that no Python code runs for each row."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._backups = Batches(database, BACKUPS, limit=_BACKUPS_AT_ONCE)
        self._cluster_folders = Batches(database, CLUSTER_FOLDERS, limit=_BACKUPS_AT_ONCE)
        self._folder_pages = Batches(database, FOLDER_PAGES, limit=_PAGES_AT_ONCE)
        self._cluster_pages = Batches(database, CLUSTER_PAGES, limit=_PAGES_AT_ONCE)

    async def probe(self) -> None:
        """Run every statement of this class, with arguments that match no row, to find missing tables, columns and privileges.

        While the table is locked, the statements are not run: they would wait for the lock as calls do, and calls still succeed.

        Raises:
            CatalogUnavailable: see `Database.probe`.
        """
        [row] = await self._database.probe(_EXCLUSIVE_LOCK)
        if row["locked"]:
            return
        await self._database.probe(BACKUPS, [""])
        await self._database.probe(CLUSTER_FOLDERS, [""])
        last_at, last_id = _NEWEST
        await self._database.probe(FOLDER_PAGE, 1, last_at, last_id, "")
        await self._database.probe(FOLDER_PAGES, ["1"], [last_at.isoformat()], [last_id], [""])
        await self._database.probe(CLUSTER_PAGE, 1, last_at, last_id, "", "")
        await self._database.probe(CLUSTER_PAGES, ["1"], [last_at.isoformat()], [last_id], [""], [""])

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
        row = await self._backups.fetch(backup_id)
        if row is None or (folders is not None and row["folder_id"] not in folders):
            raise BackupNotFound(backup_id)
        return bytes(row["wire"])

    async def page(self, folder_id: str, *, after: Position | None, size: int, client: str) -> Page:
        """Return at most `size` of a folder's backups after a position, newest first; None is the position before the newest.

        Args:
            client: clients wait for large pages in turn.

        Raises:
            CatalogUnavailable: see `Database.fetch`.
        """
        if "\0" in folder_id:  # PostgreSQL rejects it, so no folder has this id
            return _EMPTY
        return await self._read_page(self._folder_pages, FOLDER_PAGE, folder_id, after=after, size=size, client=client)

    async def cluster_page(
        self, cluster_id: str, *, folders: frozenset[str] | None, after: Position | None, size: int, client: str
    ) -> Page:
        """Return at most `size` of a cluster's backups after a position, newest first; None is the position before the newest.

        The page has the backups in the cluster's folder only. An unknown cluster and one in a hidden folder give an empty page after
        the same time: both cost one lookup of the folder, and a set lookup does not depend on the number of folders.

        Args:
            cluster_id: any text that a client sent.
            folders: those that the caller may read; None means all.
            after: the position.
            size: the number of backups.
            client: clients wait for large pages in turn.

        Raises:
            CatalogUnavailable: see `Database.fetch`.
        """
        if "\0" in cluster_id:
            return _EMPTY
        found = await self._cluster_folders.fetch(cluster_id)
        if found is None or (folders is not None and found["folder_id"] not in folders):
            return _EMPTY
        folder_id: str = found["folder_id"]
        return await self._read_page(self._cluster_pages, CLUSTER_PAGE, folder_id, cluster_id, after=after, size=size, client=client)

    async def _read_page(self, pages: Batches, large_page: str, *ids: str, after: Position | None, size: int, client: str) -> Page:
        last_at, last_id = after or _NEWEST
        if size < _LARGE_PAGE:
            return _decode_page(await pages.fetch(str(size), last_at.isoformat(), last_id, *ids))
        with self._database.trace(large_page) as on_connected:
            [row] = await self._database.fetch_large(client, large_page, size, last_at, last_id, *ids, on_connected=on_connected)
        return _decode_page(row)


def _decode_page(row: asyncpg.Record | None) -> Page:
    """Return the page of a row. Its elements are NULL if there are none."""
    if row is None or row["elements"] is None:
        return _EMPTY
    elements: bytes = row["elements"]
    last, _, extra = row["lengths"].strip("{}").partition(",")
    if not extra:
        return Page(elements)
    end = len(elements) - int(extra)
    return Page(memoryview(elements)[:end], last=elements[end - int(last) : end])
