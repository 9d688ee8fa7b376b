"""gpbackup: its history, the SQLite file `gpbackup_history.db` in the coordinator's data directory.

A row of its table `backups` is one logical backup of one database, completed or not (greenplum-db/gpbackup, history/history.go; the forks
have the same).

- The file is opened read-only, for as long as one SELECT takes: a reader that lingers makes gpbackup's COMMIT fail, and its backup with it.
- Memory: 64 KiB for a value, 128 MiB for all rows, 32 MiB for SQLite. Whatever the file contains, it is read within 3 s.
- `created_at` is end_time and `started_at` is timestamp, the coordinator's local times: an hour that a change of clocks repeats is
  resolved where one reading alone is consistent, and one that it skips is refused.
- `size` is 0, for gpbackup records none, unless the backup's files can be added up (service/importers/gpbackup_files.py).
- The id is `prefix:timestamp`; a timestamp is unique in a file.
"""

import contextlib
import re
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from service.entry import Entry, Skipped, check_id_prefix, checked_time, shown
from service.errors import CommandError, InvalidEntry, InvalidListing, InvalidTimeZone
from service.importers.gpbackup_files import Files, local_size

TOOL = "gpbackup"

_LOCK_TIMEOUT_S = 10  # while gpbackup commits
_READ_WITHIN_S = 3.0  # gpbackup's commit waits for a reader, for 5 s
_INSTRUCTIONS = 1000  # of SQLite's, between two looks at the clock
_VALUE_MAX = 64 << 10  # bytes of a value, and of a row: a real one has some hundred
_NOT_UTF8_MAX = 100  # bytes
_ROWS_MEMORY_MAX = 128 << 20  # bytes; a real row takes less than 1 KiB
_SQLITE_MEMORY_MAX = 32 << 20  # bytes; a real history needs 3 MiB

_TIMESTAMP = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)", re.ASCII)
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?", re.ASCII)

_COMPLETED = ("Success", "")  # gpbackup before 1.19.0 recorded successes only, without a status
_NOT_COMPLETED = {"Failure": "failed", "In Progress": "not completed: still running, or ended by a crash"}
_DELETION_FAILED = ("Plugin Backup Delete Failed", "Local Delete Failed")

_FILTERS = ("exclude_schema_filtered", "exclude_table_filtered", "include_schema_filtered", "include_table_filtered")
_COLUMNS = (
    *("timestamp", "end_time", "status", "date_deleted", "backup_version", "backup_dir", "plugin"),
    *("incremental", "data_only", "metadata_only", *_FILTERS, "segment_count"),
)
_ABSENT_IN_1_28_0 = {"segment_count"}

# Neither a view nor a virtual table, which could be anything.
_TABLE = "SELECT 1 FROM sqlite_schema WHERE name = 'backups' AND type = 'table' AND rootpage > 0"
_PRESENT = "SELECT name FROM pragma_table_info('backups')"

_AMBIGUOUS = "ambiguous: the clocks went back then; of the times that it can mean, the earliest completion was taken"
_PRELIMINARY = "completion preliminary: gpbackup 1.29.0 and 1.29.1 recorded a time near the start"
_UNKNOWN_END = "completion unknown, the start taken: gpbackup before 1.13.0 did not record it"
_NO_SIZE = "of size 0: gpbackup records none"

_Row = dict[str, Any]


class _Times(NamedTuple):
    created_at: datetime
    started_at: datetime
    warnings: tuple[str, ...]


def read(history: Path, *, id_prefix: str, timezone: str, backup_dir: Path | None = None) -> Iterator[Entry | Skipped]:
    """Return the backups of a history, oldest first. The file is read and closed before this returns, in bounded memory.

    Args:
        timezone: of the coordinator, such as Europe/Berlin.
        backup_dir: what `gpbackup --backup-dir` was given, where this machine has it: sizes are added up there.

    Raises:
        InvalidIdPrefix, InvalidTimeZone, InvalidListing, CommandError: at once.
        InvalidEntry: at a row that cannot be a backup.
    """
    check_id_prefix(id_prefix)
    reader = _Reader(id_prefix, _zone(timezone), backup_dir)
    columns, rows = _rows(history)
    return (reader.entry(dict.fromkeys(_ABSENT_IN_1_28_0) | dict(zip(columns, map(_decoded, row), strict=True))) for row in rows)


class _Reader:
    """Rows to entries."""

    def __init__(self, id_prefix: str, zone: ZoneInfo, backup_dir: Path | None) -> None:
        self._id_prefix = id_prefix
        self._zone = zone
        self._backup_dir = backup_dir

    def entry(self, row: _Row) -> Entry | Skipped:
        timestamp = row["timestamp"]
        label = f"backup {timestamp}" if _TIMESTAMP.fullmatch(str(timestamp)) else f"backup {shown(timestamp)}"
        starts = self._instants(label, row, "timestamp")  # of all rows: an hour that was skipped proves a wrong zone
        if reason := _not_there(label, row):
            return Skipped(reason)
        times = self._times(label, row, starts)
        size, size_warning = self._size(row)
        return Entry(
            label=label,
            id=f"{self._id_prefix}:{timestamp}",
            created_at=checked_time(label, "end_time", times.created_at),
            started_at=checked_time(label, "timestamp", times.started_at),
            size=size,
            kinds=_kinds(row),
            warnings=(*times.warnings, *_deletion_warning(row), *size_warning),
        )

    def _times(self, label: str, row: _Row, starts: list[datetime]) -> _Times:
        version = _version(row)
        if version < (1, 13, 0) and not row["status"]:  # migrated by a later gpbackup, whose end_time is when it did that
            readings = [(start, start) for start in starts]
            warnings: tuple[str, ...] = (_UNKNOWN_END,)
        else:
            ends = self._instants(label, row, "end_time")
            readings = sorted((end, start) for start in starts for end in ends if start <= end)
            warnings = (_PRELIMINARY,) if version[:2] == (1, 29) and version < (1, 29, 2) else ()
        if not readings:
            raise InvalidEntry(label, "end_time", f"{shown(row['end_time'])} is before its start")
        created_at, started_at = readings[0]
        return _Times(created_at, started_at, warnings if len(readings) == 1 else (*warnings, _AMBIGUOUS))

    def _instants(self, label: str, row: _Row, field: str) -> list[datetime]:
        """When the coordinator's clock showed this: twice, where it was set back."""
        text = _text(label, row, field)
        matched = _TIMESTAMP.fullmatch(text)
        try:
            if not matched:
                raise ValueError
            local = datetime(*map(int, matched.groups()))  # type: ignore[arg-type]  # noqa: DTZ001  # a clock's face
            instants = {local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
            shown_as = sorted(instant for instant in instants if instant.astimezone(self._zone).replace(tzinfo=None) == local)
        except (ValueError, OverflowError):
            raise InvalidEntry(label, field, f"{shown(text)} is no time such as 20261120031501") from None
        if not shown_as:
            raise InvalidEntry(label, field, f"{local} does not exist in {self._zone.key}: is the zone right?")
        return shown_as

    def _size(self, row: _Row) -> tuple[int, tuple[str, ...]]:
        """Bytes, and where that is not known, why."""
        if self._backup_dir is None:
            return 0, (f"{_NO_SIZE} (--backup-dir adds up the files of local backups)",)
        if row["plugin"]:
            return 0, (f"{_NO_SIZE}, and a plugin keeps the files",)
        if not row["backup_dir"]:
            return 0, (f"{_NO_SIZE}, and the files are in the segments' own data directories",)
        segments = row["segment_count"]
        if type(segments) is not int or not 0 < segments < 2**31:
            return 0, (f"{_NO_SIZE}, nor how many segments the files are from",)
        files = Files(str(row["timestamp"]), segments=segments, has_data=row["metadata_only"] != 1)
        found = local_size(self._backup_dir, files)
        return (0, (f"of size 0: {found}",)) if isinstance(found, str) else (found, ())


def _not_there(label: str, row: _Row) -> str | None:
    """Why a row is of no backup that one could restore."""
    status, deleted = _text(label, row, "status"), _text(label, row, "date_deleted")
    if status not in _COMPLETED:
        return _NOT_COMPLETED.get(status, f"status unknown: {shown(status)}")
    if not deleted or deleted in _DELETION_FAILED:
        return None
    if deleted == "In progress":
        return "being deleted"
    return "deleted" if _TIMESTAMP.fullmatch(deleted) else f"state of deletion unknown: {shown(deleted)}"


def _deletion_warning(row: _Row) -> tuple[str, ...]:
    return (f"still there: deletion failed ({row['date_deleted']})",) if row["date_deleted"] else ()


def _kinds(row: _Row) -> tuple[str, ...]:
    """gpbackman's types, and whether parts of the database were left out."""
    types = {"incremental": "incremental", "data_only": "data-only", "metadata_only": "metadata-only"}
    kind = next((name for column, name in types.items() if row[column] == 1), "full")
    return (kind, "filtered") if any(row[column] == 1 for column in _FILTERS) else (kind,)


def _version(row: _Row) -> tuple[int, int, int]:
    """gpbackup's, of `1.30.5+dev.3.gabcdef` too; what cannot be read counts as new."""
    matched = _VERSION.match(str(row["backup_version"]))
    return (int(matched[1]), int(matched[2]), int(matched[3] or 0)) if matched else (2**31, 0, 0)


def _text(label: str, row: _Row, field: str) -> str:
    value = row[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidEntry(label, field, f"{shown(value)} is no text")
    return value


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; a path out of the database; a folder of it
        raise InvalidTimeZone(name) from None


def _rows(history: Path) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the names of the columns and the rows of the table `backups`, oldest first."""
    _check_start(history)
    try:
        with contextlib.closing(sqlite3.connect(f"{history.absolute().as_uri()}?mode=ro", uri=True, timeout=_LOCK_TIMEOUT_S)) as connection:
            _restrict(connection)
            columns = _columns(history, connection)
            rows = _selected(history, connection, columns)
    except (sqlite3.Error, UnicodeDecodeError, MemoryError) as exc:  # the last two where it is damaged: see _complaint
        raise InvalidListing(f"{history}: {_complaint(exc)} Nothing was imported.") from exc
    # Not by SQLite, which would write its sort of a large file to the disk.
    rows.sort(key=lambda row: str(_decoded(row[0])))
    return columns, rows


def _decoded(value: Any) -> Any:
    """Return a value as SQLite's own types: text for `bytearray`. Text that is not UTF-8 is cut, as it is only shown in messages."""
    if not isinstance(value, bytearray):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value[:_NOT_UTF8_MAX].decode("utf-8", "backslashreplace")


def _restrict(connection: sqlite3.Connection) -> None:
    """Bound the time and the memory that a crafted file can take, and let nothing in its schema call functions."""
    connection.text_factory = bytearray  # fast, and not the type of a BLOB: `read` decodes it after the file is closed
    connection.set_progress_handler(_Patience(_READ_WITHIN_S).is_over, _INSTRUCTIONS)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_MAX)
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", f"hard_heap_limit = {_SQLITE_MEMORY_MAX}"):  # the last of the process
        connection.execute(f"PRAGMA {setting}").fetchall()


def _columns(history: Path, connection: sqlite3.Connection) -> list[str]:
    """Return those of `_COLUMNS` that the table has. `pragma_table_info` leaves generated columns out, so these are missing."""
    if not connection.execute(_TABLE).fetchall():
        raise InvalidListing(
            f"{history} is a SQLite file without gpbackup's table `backups`: not gpbackup's history. Nothing was imported."
        )
    present = {_decoded(name) for (name,) in connection.execute(_PRESENT)}
    if missing := set(_COLUMNS) - present - _ABSENT_IN_1_28_0:
        raise InvalidListing(f"{history}: its table `backups` has no column {', '.join(sorted(missing))}: not gpbackup's history.")
    return [column for column in _COLUMNS if column in present]


def _selected(history: Path, connection: sqlite3.Connection, columns: list[str]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    room = _ROWS_MEMORY_MAX
    for row in connection.execute(f"SELECT {', '.join(columns)} FROM backups"):  # noqa: S608  # our own names
        room -= sys.getsizeof(row) + sum(map(sys.getsizeof, row))
        if room < 0:
            raise InvalidListing(
                f"{history}: its rows take more than {_ROWS_MEMORY_MAX >> 20} MiB of memory, after {len(rows)} rows. "
                "Remove old rows from a copy (gpbackman history-clean), and import the copy. Nothing was imported."
            )
        rows.append(row)
    return rows


class _Patience:
    """Counts from the first look: SQLite takes none while it waits for a lock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends: float | None = None

    def is_over(self) -> bool:
        now = time.monotonic()
        if self._ends is None:
            self._ends = now + self._seconds
        return now > self._ends


def _check_start(history: Path) -> None:
    """
    Raises:
        CommandError: it cannot be read.
        InvalidListing: it is no SQLite file.
    """
    try:
        if not stat.S_ISREG(history.stat().st_mode):
            raise InvalidListing(f"{history} is no file.")
        with history.open("rb") as stream:
            start = stream.read(100)
    except OSError as exc:
        raise CommandError(f"{history}: {exc.strerror}") from exc
    if not start.startswith(b"SQLite format 3\0"):
        raise InvalidListing(f"{history} is {_kind(start)}. Nothing was imported.")


def _kind(start: bytes) -> str:
    """What a file that is no SQLite file seems to be."""
    if not start:
        return "empty: no gpbackup has written to it"
    if start.lstrip().startswith(b"backupconfigs:"):
        return (
            "gpbackup's history in YAML, of gpbackup before 1.28.0. Convert a copy of it: "
            "gpbackman history-migrate --history-file COPY.yaml --history-db NEW.db (or gpbackup_manager migrate-history)"
        )
    return "no SQLite file: gpbackup's history is gpbackup_history.db in the coordinator's data directory"


def _complaint(exc: Exception) -> str:
    if isinstance(exc, MemoryError):
        return f"SQLite needs more than {_SQLITE_MEMORY_MAX >> 20} MiB for it, so it may be damaged: copy it again, while no gpbackup runs."
    is_garbled = isinstance(exc, UnicodeDecodeError)  # SQLite's own complaint, which quotes the bytes that are damaged
    code = sqlite3.SQLITE_CORRUPT if is_garbled else getattr(exc, "sqlite_errorcode", 0)
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY:
            return "gpbackup is writing to it and did not finish: try again."
        case sqlite3.SQLITE_INTERRUPT:
            return (
                f"reading it took longer than {_READ_WITHIN_S:g} s, and a gpbackup that is about to write would fail: import a copy of it."
            )
        case sqlite3.SQLITE_READONLY:
            return "a write that was broken off has left its journal beside it: the next gpbackup undoes that write; import then."
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return "the file is damaged, or not whole: copy it again, while no gpbackup runs."
        case _:
            return f"SQLite cannot read it ({shown(str(exc))})."
