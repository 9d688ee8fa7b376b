"""Reader of gpbackup's history file: bounded in time and memory, and without effect on a running gpbackup.

The file is opened read-only, for one transaction of a few queries. gpbackup's COMMIT waits for readers, but fails after 5 s, and its backup
with it. So after 3 s, reading stops as soon as a writer waits.
Limits for any content: 64 KiB for a value, 128 MiB for all rows, 32 MiB for SQLite, 10 s of CPU, and a minute.
"""

import contextlib
import sqlite3
import stat
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from service.entry import quoted
from service.errors import CommandError, InvalidListing

_LOCK_TIMEOUT_S = 10  # while gpbackup commits
_WRITER_TIMEOUT_S = 3.0  # how long gpbackup may wait for this reader; its commit fails after 5 s
_WRITER_CHECK_S = 0.2
_CPU_LIMIT_S = 10.0  # CPU time, because on a busy machine reading takes many times as long
_TIME_LIMIT_S = 60.0
_INSTRUCTIONS = 1000  # of SQLite's virtual machine between two checks of the limits
_VALUE_MAX = 64 << 10  # bytes of a value, and of a row; a real row has a few hundred
_NOT_UTF8_MAX = 100  # bytes
_ROWS_MEMORY_MAX = 128 << 20  # bytes; a real row takes less than 1 KiB
_SQLITE_MEMORY_MAX = 32 << 20  # bytes; a real history needs 3 MiB
_REFERENCE_SIZE = 9  # bytes of an item of a list that grows
_TEXT_OVERHEAD = 400  # bytes of a key of two dictionaries and of a list

FILTERS = ("exclude_schema_filtered", "exclude_table_filtered", "include_schema_filtered", "include_table_filtered")
_COLUMNS = (
    *("timestamp", "end_time", "status", "date_deleted", "backup_version", "backup_dir", "plugin", "database_name"),
    *("incremental", "data_only", "metadata_only", *FILTERS, "segment_count"),
)
_ABSENT_IN_1_28_0 = ("segment_count",)

# Excludes views and virtual tables, whose contents are computed.
_IS_TABLE = "SELECT 1 FROM sqlite_schema WHERE name = ? AND type = 'table' AND rootpage > 0"
_PRESENT = "SELECT name FROM pragma_table_info('backups')"
_PLANS = "SELECT timestamp, restore_plan_timestamp FROM restore_plans"

Row: TypeAlias = dict[str, Any]


class History(NamedTuple):
    """The rows of the table `backups`, oldest first, and the restore plans."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    """Undecoded values: `row` decodes one row."""
    plans: dict[str, list[str]]
    """Timestamps of the backups that a restore reads, by the backup's timestamp."""

    def row(self, number: int) -> Row:
        """Return a row by column name. Columns that old files do not have are None."""
        values = map(_decoded, self.rows[number])
        return dict.fromkeys(_ABSENT_IN_1_28_0) | dict(zip(self.columns, values, strict=True))


def read_history(path: Path) -> History:
    """Read the file and close it.

    Raises:
        CommandError: the file cannot be opened.
        InvalidListing: the file is not gpbackup's history, is damaged, locked, or exceeds a limit.
    """
    _check_start(path)
    limit = _ReadingLimit(path)
    try:
        with contextlib.closing(_opened(path, timeout_s=_LOCK_TIMEOUT_S)) as connection:
            _restrict(connection, limit)
            connection.execute("BEGIN")  # all queries see the same state
            columns = _columns(path, connection)
            memory = _Memory(path)
            rows = _rows(connection, columns, memory)
            plans = _plans(connection, memory)
    except (sqlite3.Error, UnicodeDecodeError, MemoryError) as exc:  # damaged files raise the last two: see _error_message
        raise InvalidListing(f"{path}: {limit.exceeded or _error_message(exc)} Nothing was imported.") from exc
    # Sorted here, because SQLite would write temporary files to sort many rows.
    rows.sort(key=lambda row: str(_decoded(row[0])))
    return History(columns, rows, plans)


def _opened(path: Path, *, timeout_s: float) -> sqlite3.Connection:
    """Open the file read-only; a query waits this long while gpbackup commits."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=timeout_s)


def _decoded(value: Any) -> Any:
    """Return a value as SQLite's own types: text for `bytearray`. Text that is not UTF-8 is cut, because it only appears in messages."""
    if not isinstance(value, bytearray):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value[:_NOT_UTF8_MAX].decode("utf-8", "backslashreplace")


def _restrict(connection: sqlite3.Connection, limit: "_ReadingLimit") -> None:
    """Bound the time and the memory that a crafted file can take, and prevent its schema from calling functions."""
    connection.text_factory = bytearray  # texts are decoded after the file is closed; unlike bytes, the type differs from that of a BLOB
    connection.set_progress_handler(limit.check, _INSTRUCTIONS)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_MAX)
    # hard_heap_limit applies to the whole process.
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", f"hard_heap_limit = {_SQLITE_MEMORY_MAX}"):
        connection.execute(f"PRAGMA {setting}").fetchall()


def _columns(path: Path, connection: sqlite3.Connection) -> list[str]:
    """Return the names in `_COLUMNS` that the table has. `pragma_table_info` omits generated columns, so they count as missing."""
    if not connection.execute(_IS_TABLE, ("backups",)).fetchall():
        raise InvalidListing(f"{path} is a SQLite file without gpbackup's table `backups`: not gpbackup's history. Nothing was imported.")
    present = {_decoded(name) for (name,) in connection.execute(_PRESENT)}
    if missing := set(_COLUMNS) - present - set(_ABSENT_IN_1_28_0):
        raise InvalidListing(f"{path}: its table `backups` has no column {', '.join(sorted(missing))}: not gpbackup's history.")
    return [column for column in _COLUMNS if column in present]


class _Memory:
    """Budget of the memory for all rows of a history."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = _ROWS_MEMORY_MAX
        self._rows = 0

    def take(self, size: int) -> None:
        """Count a row of this size in bytes.

        Raises:
            InvalidListing: the budget is exhausted.
        """
        self._left -= size
        self._rows += 1
        if self._left < 0:
            raise InvalidListing(
                f"{self._path}: its rows take more than {_ROWS_MEMORY_MAX >> 20} MiB of memory, after {self._rows} rows. "
                "Remove old rows from a copy (gpbackman history-clean), and import the copy. Nothing was imported."
            )


def _rows(connection: sqlite3.Connection, columns: list[str], memory: _Memory) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for row in connection.execute(f"SELECT {', '.join(columns)} FROM backups"):  # noqa: S608  # names of this module
        memory.take(sys.getsizeof(row) + sum(map(sys.getsizeof, row)))
        rows.append(row)
    return rows


def _plans(connection: sqlite3.Connection, memory: _Memory) -> dict[str, list[str]]:
    """Return the restore plans. Equal timestamps share one string, because plans of daily increments grow with the square of the days."""
    plans: dict[str, list[str]] = {}
    if not connection.execute(_IS_TABLE, ("restore_plans",)).fetchall():
        return plans
    texts: dict[str, str] = {}
    for row in connection.execute(_PLANS):
        timestamp, needed = (str(_decoded(value)) for value in row)
        new = {timestamp, needed} - texts.keys()
        memory.take(_REFERENCE_SIZE + sum(_TEXT_OVERHEAD + sys.getsizeof(text) for text in new))
        texts.update((text, text) for text in new)
        plans.setdefault(texts[timestamp], []).append(texts[needed])
    return plans


class _ReadingLimit:
    """Limits of CPU and time, and the rule that gpbackup must not wait long for this reader."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start: float | None = None
        self._cpu_start = 0.0
        self._next_writer_check = _WRITER_TIMEOUT_S
        self.exceeded: str | None = None
        """Error message of the limit that has stopped the reading."""

    def check(self) -> bool:
        """Return True if reading must stop. The time is measured from the first call, which SQLite makes after it has waited for locks."""
        now = time.monotonic()
        if self._start is None:
            self._start, self._cpu_start = now, time.thread_time()
        elapsed = now - self._start
        if time.thread_time() - self._cpu_start > _CPU_LIMIT_S:
            self.exceeded = (
                f"reading the file took more than {_CPU_LIMIT_S:g} s of CPU time: remove old rows from a copy, and import the copy."
            )
        elif elapsed > _TIME_LIMIT_S:
            self.exceeded = (
                f"reading the file took longer than {_TIME_LIMIT_S:g} s: import a copy on a fast disk, or on a machine with less load."
            )
        elif elapsed >= self._next_writer_check:
            self._next_writer_check = elapsed + _WRITER_CHECK_S
            if self._writer_waits():
                self.exceeded = (
                    f"reading was stopped after {elapsed:.0f} s, because a gpbackup waits to write: try again, or import a copy."
                )
        return self.exceeded is not None

    def _writer_waits(self) -> bool:
        """Return True if a process waits for the readers of the file to finish: SQLite admits no new reader then."""
        try:
            with contextlib.closing(_opened(self._path, timeout_s=0)) as connection:
                connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        except (sqlite3.Error, MemoryError):
            return True
        return False


def _check_start(path: Path) -> None:
    """Check that a file looks like a SQLite file.

    Raises:
        CommandError: it cannot be read.
        InvalidListing: it is not a SQLite file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidListing(f"{path} is not a file.")
        with path.open("rb") as stream:
            start = stream.read(100)
    except OSError as exc:
        raise CommandError(f"{path}: {exc.strerror}") from exc
    if not start.startswith(b"SQLite format 3\0"):
        raise InvalidListing(f"{path} is {_description(start)}. Nothing was imported.")


def _description(start: bytes) -> str:
    """Return a description of a file that is not a SQLite file."""
    if not start:
        return "empty: no gpbackup has written to it"
    if start.lstrip().startswith(b"backupconfigs:"):
        return (
            "gpbackup's history in YAML, of gpbackup before 1.28.0. Convert a copy of it: "
            "gpbackman history-migrate --history-file COPY.yaml --history-db NEW.db (or gpbackup_manager migrate-history)"
        )
    return "not a SQLite file: gpbackup's history is gpbackup_history.db in the coordinator's data directory"


def _error_message(exc: Exception) -> str:
    if isinstance(exc, MemoryError):
        return (
            f"SQLite needs more than {_SQLITE_MEMORY_MAX >> 20} MiB for the file, so it may be damaged: "
            "copy it again while no gpbackup runs."
        )
    is_garbled = isinstance(exc, UnicodeDecodeError)  # SQLite's own error message quotes the damaged bytes
    code = sqlite3.SQLITE_CORRUPT if is_garbled else getattr(exc, "sqlite_errorcode", 0)
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY:
            return "gpbackup is writing to the file and did not finish: try again."
        case sqlite3.SQLITE_READONLY:
            return "an interrupted write has left its journal next to the file: the next gpbackup undoes that write. Import after it."
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return "the file is damaged or incomplete: copy it again while no gpbackup runs."
        case _:
            return f"SQLite cannot read the file ({quoted(str(exc))})."
