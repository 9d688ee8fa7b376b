"""The words of the product: what a backup can be, a place in a folder's list, a page of it."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

# What the API can say, and the table's constraints allow: 50 characters of an id fill a page token exactly.
ID_MAX_LENGTH = 50
TIME_MIN = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MAX = datetime(9999, 12, 31, 23, 59, 59, 999998, tzinfo=UTC)  # a microsecond later is infinity to asyncpg
DEFAULT_PAGE_SIZE = 100
_ID = re.compile(rf"[!-~]{{1,{ID_MAX_LENGTH}}}")


class Position(NamedTuple):
    """A place in a folder's list, which is ordered by these two, both descending."""

    created_at: datetime
    id: str


class Page(NamedTuple):
    """Some backups in the order of the list."""

    elements: list[bytes]
    """Each the protobuf encoding of one element of `ListBackupsResponse.backups`, tag and length included."""
    has_more: bool


def is_backup_id(text: str) -> bool:
    """Whether a backup can have this id: 1 to 50 printable ASCII characters without space."""
    return _ID.fullmatch(text) is not None
