"""gpbackup: the history `gpbackup_history.db` in the coordinator's data directory.

A row of its table `backups` is one run of gpbackup, a logical backup of one database (greenplum-db/gpbackup, history/history.go; the forks
have the same table).

- `created_at` is end_time and `started_at` is timestamp, both in the coordinator's local time. In an hour that a clock change repeats,
  the only consistent interpretation is used. If there are several, it is the one with the earliest completion.
- `size` is unknown, because gpbackup records none, unless the backup's files can be added up (gpbackup_files.py).
- The id is `prefix:timestamp`. A timestamp is unique in a file.
- A backup needs the other backups of its restore plan, which is complete: it includes the needs of the increments in it.
- The type follows gpbackman (gpbckpconfig/utils.go).
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from service.entry import (
    ENDS_BEFORE_IT_STARTS,
    EXCLUDED,
    NEEDS_MAX,
    TOO_EARLY,
    Attempt,
    Contents,
    Deleted,
    Entry,
    Listed,
    Method,
    Selection,
    Skipped,
    Unusable,
    check_id_prefix,
    checked_time,
    quoted,
)
from service.errors import InvalidEntry, InvalidTimeZone
from service.importers.gpbackup_files import Files, local_size
from service.importers.gpbackup_history import FILTERS, History, Row, read_history

TOOL = "gpbackup"

_TIMESTAMP = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)", re.ASCII)
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?", re.ASCII)
_DATABASE_MAX = 255  # bytes; NAMEDATALEN allows 63

_COMPLETED = ("Success", "")  # gpbackup before 1.19.0 recorded successes only, without a status
_DELETION_FAILED = ("Plugin Backup Delete Failed", "Local Delete Failed")

_AMBIGUOUS = "ambiguous: the clocks went back at that time; the earliest possible completion was taken"
_PRELIMINARY = "completion preliminary: gpbackup 1.29.0 and 1.29.1 recorded a time near the start"
_UNKNOWN_END = "completion unknown, start taken: gpbackup before 1.13.0 did not record it"
_NO_SIZE = "size unknown: gpbackup records none"


class _Times(NamedTuple):
    created_at: datetime
    started_at: datetime
    warnings: tuple[str, ...]


class _Type(NamedTuple):
    types: tuple[str, ...]
    contents: Contents
    method: Method


def read(
    history: Path,
    *,
    id_prefix: str,
    timezone: str,
    backup_dir: Path | None = None,
    selection: Selection = Selection(),  # noqa: B008  # immutable
) -> Iterator[Listed]:
    """Return the rows of a history, oldest first. The file is read and closed before this returns, in bounded memory.

    Args:
        timezone: the coordinator's, such as Europe/Berlin.
        backup_dir: the directory of `gpbackup --backup-dir`, if this machine has it: sizes are added up there.

    Raises:
        InvalidIdPrefix, InvalidTimeZone, CommandError: raised by this call.
        InvalidListing: the file is not a history, or is too large. Raised by this call.
    """
    check_id_prefix(id_prefix)
    zone = _zone(timezone)
    found = read_history(history)
    reader = _Reader(id_prefix, zone, backup_dir, selection, plans=found.plans, newest=_newest(found))
    return (reader.listed(found.row(number)) for number in range(len(found.rows)))


def _newest(history: History) -> dict[str, str]:
    """Return the newest timestamp of each database, of runs in any state."""
    rows = (history.row(number) for number in range(len(history.rows)))
    return {str(row["database_name"]): str(row["timestamp"]) for row in rows}


class _Reader:
    """Conversion of rows to entries."""

    def __init__(
        self,
        id_prefix: str,
        zone: ZoneInfo,
        backup_dir: Path | None,
        selection: Selection,
        *,
        plans: dict[str, list[str]],
        newest: dict[str, str],
    ) -> None:
        self._id_prefix = id_prefix
        self._zone = zone
        self._backup_dir = backup_dir
        self._selection = selection
        self._plans = plans
        self._newest = newest

    def listed(self, row: Row) -> Listed:
        """Return the entry of a row. A malformed row that the operator leaves out is skipped, not unusable."""
        timestamp = row["timestamp"]
        name = timestamp if isinstance(timestamp, str) and _TIMESTAMP.fullmatch(timestamp) else None
        label = f"backup {name or quoted(timestamp)}"
        try:
            if excuse := self._not_a_backup(label, row, name):
                return excuse
            if name is None:
                raise InvalidEntry(label, "timestamp", f"{quoted(timestamp)} is not a time such as 20261120031501")
            return self._entry(label, row, name)
        except InvalidEntry as exc:
            return self._left_out(row, name) or Unusable.by(name, exc)

    def _not_a_backup(self, label: str, row: Row, name: str | None) -> Listed | None:
        """Return the entry of a row that is not an existing backup, or None. Its other values are not checked."""
        status, deleted = _text(label, row, "status"), _text(label, row, "date_deleted")
        if status == "Failure":
            return self._attempt(row, name, "failed")
        if status == "In Progress":
            is_newest = self._newest.get(str(row["database_name"])) == name
            return self._attempt(row, name, "running" if is_newest else "crashed")
        if deleted == "In progress" or _TIMESTAMP.fullmatch(deleted):
            reason = "being deleted" if deleted == "In progress" else "deleted"
            return Deleted(name, reason) if name else Skipped(None, reason)
        if left_out := self._left_out(row, name):
            return left_out
        if status not in _COMPLETED:
            raise InvalidEntry(label, "status", f"{quoted(status)} is unknown")
        if deleted and deleted not in _DELETION_FAILED:
            raise InvalidEntry(label, "date_deleted", f"{quoted(deleted)} is unknown")
        return None

    def _left_out(self, row: Row, name: str | None) -> Skipped | None:
        """Return a skipped entry if --exclude or --since leaves out the row, or None. --exclude may also name a malformed timestamp."""
        if self._selection.excludes(str(row["timestamp"])):
            return Skipped(name, EXCLUDED)
        return Skipped(name, TOO_EARLY) if name and self._is_too_early(row) else None

    def _attempt(self, row: Row, name: str | None, state: str) -> Listed:
        """Return the attempt of a row, or a skipped entry if its values cannot be read."""
        reason = "failed" if state == "failed" else "not completed: still running, or ended by a crash"
        started_at = self._approximate_instant(row["timestamp"])
        if name is None or started_at is None:
            return Skipped(name, reason)
        if self._selection.excludes(name):
            return Skipped(name, EXCLUDED)
        if self._selection.is_too_early(started_at):
            return Skipped(name, TOO_EARLY)
        try:
            database = _database("", row)
        except InvalidEntry:
            return Skipped(name, reason)
        return Attempt(name, database, started_at, state)  # type: ignore[arg-type]  # one of its three states

    def _is_too_early(self, row: Row) -> bool:
        """Return True if the backup was certainly completed before --since, even if its times are invalid in the zone."""
        completed = self._approximate_instant(row["timestamp"] if _has_no_end(row) else row["end_time"])
        return completed is not None and self._selection.is_too_early(completed)

    def _approximate_instant(self, text: object) -> datetime | None:
        """Return the instant of a local time, the later one if it is ambiguous or does not exist, or None if it is not a time."""
        try:
            local = _local(text)
            instant = max(local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1))
            return checked_time("", "", instant)
        except (InvalidEntry, ValueError, OverflowError):
            return None

    def _entry(self, label: str, row: Row, name: str) -> Entry | Skipped:
        times = self._times(label, row)
        if self._selection.is_too_early(times.created_at):
            return Skipped(name, TOO_EARLY)
        kind = _type(label, row)
        size, size_warning = self._size(row)
        return Entry(
            label=label,
            name=name,
            id=f"{self._id_prefix}:{name}",
            created_at=checked_time(label, "end_time", times.created_at),
            started_at=checked_time(label, "timestamp", times.started_at),
            size=size,
            method=kind.method,
            contents=kind.contents,
            database=_database(label, row),
            needs=self._needs(label, name, kind),
            types=kind.types,
            warnings=(*times.warnings, *_deletion_warning(row), *size_warning),
        )

    def _needs(self, label: str, name: str, kind: _Type) -> tuple[str, ...]:
        if kind.contents == "metadata only":
            return ()
        needs = tuple(dict.fromkeys(needed for needed in self._plans.get(name, ()) if needed != name))
        if len(needs) > NEEDS_MAX:
            raise InvalidEntry(label, "restore_plans", f"more than {NEEDS_MAX} backups")
        for needed in needs:
            if not _TIMESTAMP.fullmatch(needed):
                raise InvalidEntry(label, "restore_plans", f"{quoted(needed)} is not a time such as 20261120031501")
        return needs

    def _times(self, label: str, row: Row) -> _Times:
        starts = self._instants(label, row, "timestamp")
        if _has_no_end(row):
            ends, warnings = starts, (_UNKNOWN_END,)
            candidates = [(start, start) for start in starts]
        else:
            ends = self._instants(label, row, "end_time")
            version = _version(row)
            warnings = (_PRELIMINARY,) if (1, 29) <= version < (1, 29, 2) else ()  # type: ignore[assignment]
            candidates = sorted((end, start) for start in starts for end in ends if start <= end)
        if not candidates:
            return _Times(ends[0], ends[0], (*warnings, ENDS_BEFORE_IT_STARTS))
        created_at, started_at = candidates[0]
        return _Times(created_at, started_at, warnings if len(candidates) == 1 else (*warnings, _AMBIGUOUS))

    def _instants(self, label: str, row: Row, field: str) -> list[datetime]:
        """Return the instants at which the coordinator's clock showed a time: two if it was set back.

        Raises:
            InvalidEntry: the value is not a time, or no clock of the zone has shown it. The zone may be wrong. But the coordinator may
                have had another zone then, so one such time does not prove that all others are wrong.
        """
        text = _text(label, row, field)
        try:
            local = _local(text)
            candidates = {local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
            instants = sorted(each for each in candidates if each.astimezone(self._zone).replace(tzinfo=None) == local)
        except (ValueError, OverflowError):
            raise InvalidEntry(label, field, f"{quoted(text)} is not a time such as 20261120031501") from None
        if not instants:
            raise InvalidEntry(
                label, field, f"{local} does not exist in {self._zone.key}: if --timezone is wrong, all times of this import are wrong"
            )
        return instants

    def _size(self, row: Row) -> tuple[int | None, tuple[str, ...]]:
        """Return the size in bytes, or None and the reason why it is unknown."""
        if self._backup_dir is None:
            return None, (f"{_NO_SIZE} (--backup-dir adds up the files of local backups)",)
        if row["plugin"]:
            return None, (f"{_NO_SIZE}, and a plugin stores the files",)
        if not row["backup_dir"]:
            return None, (f"{_NO_SIZE}, and the files are in the segments' own data directories",)
        segments = row["segment_count"]
        if type(segments) is not int or not 0 < segments < 2**31:
            return None, (f"{_NO_SIZE}, nor the number of segments",)
        files = Files(str(row["timestamp"]), segments=segments, has_data=row["metadata_only"] != 1)
        found = local_size(self._backup_dir, files)
        return (None, (f"size unknown: {found}",)) if isinstance(found, str) else (found, ())


def _local(text: object) -> datetime:
    """Return a local time without its zone.

    Raises:
        ValueError: the value is not a time.
    """
    matched = _TIMESTAMP.fullmatch(text) if isinstance(text, str) else None
    if not matched:
        raise ValueError
    return datetime(*map(int, matched.groups()))  # type: ignore[arg-type]  # noqa: DTZ001  # its zone is not known yet


def _has_no_end(row: Row) -> bool:
    """Return True if a later gpbackup has migrated the row: its end_time is the time of the migration, not of the backup."""
    return _version(row) < (1, 13, 0) and not row["status"]


def _deletion_warning(row: Row) -> tuple[str, ...]:
    return (f"still present: deletion failed ({row['date_deleted']})",) if row["date_deleted"] else ()


def _type(label: str, row: Row) -> _Type:
    """Return the type of a backup as gpbackman defines it, with its contents and method.

    Raises:
        InvalidEntry: gpbackup cannot make a backup with these flags.
    """
    incremental, data_only, metadata_only = (row[flag] == 1 for flag in ("incremental", "data_only", "metadata_only"))
    filtered = any(row[column] == 1 for column in FILTERS)
    method: Method = "incremental" if incremental else "base"
    contents: Contents = "filtered" if filtered else "everything"
    if metadata_only and not (incremental and data_only):
        name, contents = "metadata-only", "metadata only"
    elif incremental and data_only:
        raise InvalidEntry(label, "incremental", "contradicts data_only")
    elif data_only:
        name, contents = "data-only", "data only"
    else:
        name = "incremental" if incremental else "full"
    return _Type((name, "filtered") if filtered else (name,), contents, method)


def _version(row: Row) -> tuple[int, int, int]:
    """Return gpbackup's version, such as (1, 30, 5) for `1.30.5+dev.3.gabcdef`. An unreadable version counts as new."""
    matched = _VERSION.match(str(row["backup_version"]))
    return (int(matched[1]), int(matched[2]), int(matched[3] or 0)) if matched else (2**31, 0, 0)


def _database(label: str, row: Row) -> str:
    """Return the database's name. gpbackup records it as quote_ident prints it.

    Raises:
        InvalidEntry: the value is not the name of a database.
    """
    text = _text(label, row, "database_name")
    name = text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text
    if not name or "\0" in name or len(name.encode()) > _DATABASE_MAX:
        raise InvalidEntry(label, "database_name", f"{quoted(text)} is not the name of a database")
    return name


def _text(label: str, row: Row, field: str) -> str:
    """Return a text. NULL, which other tools may write, is empty.

    Raises:
        InvalidEntry: the value has another type.
    """
    value = row[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidEntry(label, field, f"{quoted(value)} is not text")
    return value


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; a path outside the database; one of its folders
        raise InvalidTimeZone(name) from None
