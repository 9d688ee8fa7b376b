"""Entries of a backup tool's listing, in a form that does not depend on the tool."""

from datetime import datetime, timedelta
from typing import Literal, NamedTuple, TypeAlias

from service.backup import TIME_MAX, TIME_MIN, is_backup_id
from service.errors import InvalidEntry, InvalidIdPrefix

# An id is the prefix, a colon, and at most 25 characters of the tool's own name for the backup.
ID_PREFIX_MAX_LENGTH = 24

CLOCK_TOLERANCE = timedelta(hours=1)
"""Maximum distance of a date in the future. A backup with a later date was dated by a wrong clock."""

NEEDS_MAX = 1000  # as the table's constraint

_SIZE_MAX = 2**53 - 1  # the largest integer that JavaScript represents exactly
_QUOTED_MAX_LENGTH = 100

Method: TypeAlias = Literal["base", "incremental"]
Contents: TypeAlias = Literal["everything", "metadata only", "data only", "filtered"]


class Entry(NamedTuple):
    """A usable backup of a listing."""

    label: str
    """Name of the entry in messages."""
    name: str
    """The tool's own name for the backup."""
    id: str
    created_at: datetime
    """When the backup was completed."""
    started_at: datetime
    size: int | None
    """Bytes, or None if unknown."""
    method: Method | None = None
    """None if the tool does not record it."""
    contents: Contents = "everything"
    database: str = ""
    """Empty for a backup of the whole cluster."""
    permanent: bool | None = None
    """True if the tool never deletes the backup by itself; None if the tool does not record it."""
    needs: tuple[str, ...] = ()
    """Names of the backups that a restore requires: the direct parent for WAL-G, all of them for gpbackup."""
    types: tuple[str, ...] = ()
    """The tool's own types of the backup, which the summary counts."""
    warnings: tuple[str, ...] = ()


class Skipped(NamedTuple):
    """An entry of the listing that is not imported, although the backup may exist: it is never pruned."""

    name: str | None
    """None if it cannot be read."""
    reason: str


class Unusable(NamedTuple):
    """An entry whose values the catalog cannot hold. A listing with too many of them is rejected."""

    name: str | None
    """None if it cannot be read."""
    entry: str
    """Name of the entry in messages."""
    field: str
    reason: str

    @classmethod
    def by(cls, name: str | None, error: InvalidEntry) -> "Unusable":
        """Return the entry that an error was raised for."""
        return cls(name, error.entry, error.field, error.reason)

    @property
    def message(self) -> str:
        """The error, as one line."""
        return f"{self.entry}: {self.field}: {self.reason}"


class Deleted(NamedTuple):
    """A backup that the listing records as deleted, or as being deleted."""

    name: str
    reason: str


class Attempt(NamedTuple):
    """A run of the tool that did not complete a backup."""

    name: str
    database: str
    started_at: datetime
    state: Literal["failed", "running", "crashed"]


Listed: TypeAlias = Entry | Skipped | Unusable | Deleted | Attempt


class Selection(NamedTuple):
    """The entries of a listing that the operator wants to import."""

    since: datetime | None = None
    """Skip backups that were completed before this time."""
    exclude: frozenset[str] = frozenset()
    """Skip entries with these names."""

    def excludes(self, name: str) -> bool:
        """Return True if the operator named this entry to leave it out."""
        return name in self.exclude

    def is_too_early(self, time: datetime) -> bool:
        """Return True if a backup that was completed at this time is left out."""
        return self.since is not None and time < self.since


EXCLUDED = "excluded by --exclude"
TOO_EARLY = "completed before --since"
ENDS_BEFORE_IT_STARTS = "completed before it started, according to the tool: imported with a duration of 0"


def check_id_prefix(prefix: str) -> None:
    """Check that ids can begin with this prefix.

    Raises:
        InvalidIdPrefix: ids would be too long, or have characters that an id cannot have.
    """
    if not is_backup_id(prefix) or len(prefix) > ID_PREFIX_MAX_LENGTH:
        raise InvalidIdPrefix(prefix, limit=ID_PREFIX_MAX_LENGTH)


def checked_id(label: str, field: str, backup_id: str) -> str:
    """Return the id.

    Raises:
        InvalidEntry: a backup cannot have this id.
    """
    if not is_backup_id(backup_id):
        raise InvalidEntry(label, field, f"{quoted(backup_id)} is not an id: 1 to 50 printable ASCII characters without space")
    return backup_id


def checked_time(label: str, field: str, time: datetime) -> datetime:
    """Return the time.

    Raises:
        InvalidEntry: the API cannot represent this time.
    """
    if not TIME_MIN <= time <= TIME_MAX:
        raise InvalidEntry(label, field, f"{time.isoformat()} is not between 1970 and 9999")
    return time


def checked_size(label: str, field: str, size: object) -> int:
    """Return the size in bytes.

    Raises:
        InvalidEntry: it is not an integer of the allowed range. A boolean is not an integer.
    """
    if type(size) is not int or not 0 <= size <= _SIZE_MAX:
        raise InvalidEntry(label, field, f"{quoted(size)} is not a whole number of bytes from 0 to {_SIZE_MAX}")
    return size


def quoted(value: object) -> str:
    """Return a value of a listing for a message, as one line of at most 100 characters."""
    if isinstance(value, list | dict):
        # Printing it could take more memory and recursion than parsing it.
        return f"a JSON {'array' if isinstance(value, list) else 'object'}"
    text = ascii(value[:_QUOTED_MAX_LENGTH]) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= _QUOTED_MAX_LENGTH else text[: _QUOTED_MAX_LENGTH - 3] + "..."
