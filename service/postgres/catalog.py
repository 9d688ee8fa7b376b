"""What the service reads: one backup, a page of a folder's backups."""

from collections.abc import Callable

from service.backup import Page, Position, is_backup_id
from service.errors import BackupNotFound
from service.postgres.database import Database

_GET = "SELECT folder_id, wire FROM backups WHERE id = $1"

# LIMIT is one more than the page: whether there is a row after it is whether there is a page after it.
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
    """The table `backups`, whose column `wire` is the row as the API sends it: no Python runs per row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, backup_id: str, *, may_read: Callable[[str], bool]) -> bytes:
        """One backup, as an element of `ListBackupsResponse.backups`, tag and length included.

        Args:
            may_read: whether the caller may read a folder; a backup in another one is not there.

        Raises:
            BackupNotFound: there is none of this id.
            CatalogUnavailable: see `Database.fetch`.
        """
        if not is_backup_id(backup_id):  # what cannot be an id never reaches SQL, which refuses NUL
            raise BackupNotFound(backup_id)
        for row in await self._database.fetch(_GET, backup_id):
            if may_read(row["folder_id"]):
                return bytes(row["wire"])
        raise BackupNotFound(backup_id)  # the same line for what is hidden: alike in time too

    async def page(self, folder_id: str, *, after: Position | None, size: int) -> Page:
        """The folder's newest backups after this position, at most `size` of them.

        Raises:
            CatalogUnavailable: see `Database.fetch`.
        """
        if "\0" in folder_id:  # no folder's id: SQL refuses it
            return Page([], has_more=False)
        if after is None:
            rows = await self._database.fetch(_FIRST_PAGE, folder_id, size)
        else:
            rows = await self._database.fetch(_NEXT_PAGE, folder_id, size, after.created_at, after.id)
        return Page([row[0] for row in rows[:size]], has_more=len(rows) > size)  # by position: by name takes half as long again
