"""Reads of the API: one backup, and one page of a folder's backups."""

from service.backup import TIME_MIN, Page, Position, is_backup_id
from service.errors import BackupNotFound
from service.postgres.database import Database

_GET = "SELECT folder_id, wire FROM backups WHERE id = $1"

# One row more than the page has: if there is such a row, there is a next page.
_FIRST_PAGE = """
    SELECT wire FROM backups
    WHERE folder_id = $1
    ORDER BY created_at DESC, id DESC
    LIMIT $2 + 1"""

_NEXT_PAGE = """
    SELECT wire FROM backups
    WHERE folder_id = $1 AND (created_at, id) < ($3, $4)
    ORDER BY created_at DESC, id DESC
    LIMIT $2 + 1"""


class Catalog:
    """The table `backups`. Its column `wire` is the row as the API sends it, so that no Python runs for each row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def probe(self) -> None:
        """Run every statement of this class, with arguments that match no row, to find missing tables, columns and rights.

        Raises:
            CatalogUnavailable: see `Database.probe`.
        """
        await self._database.probe(_GET, "")
        await self._database.probe(_FIRST_PAGE, "", 0)
        await self._database.probe(_NEXT_PAGE, "", 0, TIME_MIN, "")

    async def get(self, backup_id: str, *, folders: frozenset[str] | None) -> bytes:
        """Return a backup as an element of `ListBackupsResponse.backups`, tag and length included.

        A hidden backup is like an absent one, also in time: comparing the folder here takes the same time for any number of folders
        (docs/decisions/0009-where-a-folder-is-compared.md).

        Args:
            folders: those that the caller may read; None means all.

        Raises:
            BackupNotFound: there is no such backup in these folders.
            CatalogUnavailable: see `Database.fetch`.
        """
        if not is_backup_id(backup_id):  # SQL would reject NUL
            raise BackupNotFound(backup_id)
        rows = await self._database.fetch(_GET, backup_id)
        if not rows or (folders is not None and rows[0][0] not in folders):
            raise BackupNotFound(backup_id)
        return bytes(rows[0][1])

    async def page(self, folder_id: str, *, after: Position | None, size: int) -> Page:
        """Return the folder's newest backups after this position, at most `size` of them.

        Raises:
            CatalogUnavailable: see `Database.fetch`.
        """
        if "\0" in folder_id:  # SQL would reject NUL
            return Page([], has_more=False)
        if after is None:
            rows = await self._database.fetch(_FIRST_PAGE, folder_id, size)
        else:
            rows = await self._database.fetch(_NEXT_PAGE, folder_id, size, after.created_at, after.id)
        return Page([row[0] for row in rows[:size]], has_more=len(rows) > size)  # by position: by name takes half as long again
