"""Domain values: limits of a backup, a position in a list of backups, a page of it."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

# Limits of the API, which the table's constraints repeat. With 50 characters an id just fits into a page token.
ID_MAX_LENGTH = 50
TIME_MIN = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MAX = datetime(9999, 12, 31, 23, 59, 59, 999998, tzinfo=UTC)  # asyncpg binds the next microsecond as infinity
DEFAULT_PAGE_SIZE = 100
_ID = re.compile(rf"[!-~]{{1,{ID_MAX_LENGTH}}}")


class Position(NamedTuple):
    """A position in a list of backups, which is ordered by completion time, then by id, both descending."""

    created_at: datetime
    """When the backup was completed."""
    id: str


class Page(NamedTuple):
    """Consecutive backups of a list."""

    elements: bytes | memoryview
    """Protobuf encodings of elements of `ListBackupsResponse.backups`, each with its tag and length."""
    last: bytes | None = None
    """The last of these elements if there is a next page, otherwise None."""


def is_backup_id(text: str) -> bool:
    """Return True if a text can be the id of a backup: 1 to 50 printable ASCII characters without spaces."""
    return _ID.fullmatch(text) is not None
