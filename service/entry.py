"""The words of an import: what a tool's listing says of one backup, whatever the tool."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from service.backup import TIME_MAX, TIME_MIN, is_backup_id
from service.errors import InvalidEntry, InvalidIdPrefix

# An id is the prefix, a colon, and at most 25 characters of the tool's own name for the backup.
ID_PREFIX_MAX_LENGTH = 24

_SIZE_MAX = 2**53 - 1
_SHOWN_MAX_LENGTH = 100


class Entry(NamedTuple):
    """A usable backup of a listing."""

    label: str
    """What messages call it."""
    id: str
    created_at: datetime
    started_at: datetime
    size: int
    kinds: tuple[str, ...] = ()
    """What the tool calls such a backup: counted in the summary, for the API cannot say it."""
    warnings: tuple[str, ...] = ()
    """What a reader of the catalog should know of these values."""


class Skipped(NamedTuple):
    """An entry that is no usable backup by the tool's own rules."""

    reason: str


def completed_since(entries: Iterable[Entry | Skipped], time: datetime) -> Iterator[Entry | Skipped]:
    """Skips what was completed before: what a clone inherited from its source."""
    for entry in entries:
        yield Skipped("completed before --since") if isinstance(entry, Entry) and entry.created_at < time else entry


def check_id_prefix(prefix: str) -> None:
    """
    Raises:
        InvalidIdPrefix: ids that begin with it could be longer than an id may be, or have characters that an id may not have.
    """
    if not is_backup_id(prefix) or len(prefix) > ID_PREFIX_MAX_LENGTH:
        raise InvalidIdPrefix(prefix, limit=ID_PREFIX_MAX_LENGTH)


def checked_id(label: str, field: str, backup_id: str) -> str:
    """
    Raises:
        InvalidEntry: no backup can have this id.
    """
    if not is_backup_id(backup_id):
        raise InvalidEntry(label, field, f"{shown(backup_id)} is no id: 1 to 50 printable ASCII characters without space")
    return backup_id


def checked_time(label: str, field: str, time: datetime) -> datetime:
    """
    Raises:
        InvalidEntry: the API cannot say this time.
    """
    if not TIME_MIN <= time <= TIME_MAX:
        raise InvalidEntry(label, field, f"{time.isoformat()} is not between 1970 and 9999")
    return time


def checked_size(label: str, field: str, size: object) -> int:
    """
    Raises:
        InvalidEntry: it is no number of bytes; True, which Python takes for 1, among others.
    """
    if type(size) is not int or not 0 <= size <= _SIZE_MAX:
        raise InvalidEntry(label, field, f"{shown(size)} is not a whole number of bytes from 0 to {_SIZE_MAX}")
    return size


def shown(value: object) -> str:
    """Return a value of a listing for a message: one line of at most 100 characters."""
    if isinstance(value, list | dict):
        return (
            f"a JSON {'array' if isinstance(value, list) else 'object'}"  # its text could take more memory and recursion than its parsing
        )
    text = ascii(value[:_SHOWN_MAX_LENGTH]) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= _SHOWN_MAX_LENGTH else text[: _SHOWN_MAX_LENGTH - 3] + "..."
