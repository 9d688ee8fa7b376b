"""WAL-G: what `wal-g backup-list --detail --json` prints for Greenplum.

One JSON array, usually on a single line, of objects with the keys Name, start_time, finish_time, compressed_size, user_data and others
(wal-g/wal-g, internal/databases/greenplum/backup_list_handler.go). Only completed backups are in it.

- `created_at` is finish_time, `started_at` is start_time. Never a time from the name: it is the coordinator's local time, though it
  ends in Z.
- `size` is compressed_size: the bytes of the backup's own files, without the append-optimized files that backups share
  (since WAL-G 2.0.0 these are in neither of WAL-G's sizes).
- The id is user_data.backup_id if a control plane has put a string there, else `prefix:name`. A given id may not have the form of an id
  that another prefix makes.
- Memory: one entry at a time, of at most 1 MiB characters (json_array.py).
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from service.entry import Entry, Skipped, check_id_prefix, checked_id, checked_size, checked_time, shown
from service.errors import InvalidEntry, InvalidListing
from service.importers.json_array import JsonArray, NotAnArray, Readable

TOOL = "walg"

_COMMAND = "wal-g backup-list --detail --json"
_NAME = re.compile(r"(backup_\d{8}T\d{6}Z)((_D)_\d{8}T\d{6}Z)?", re.ASCII)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)
_ZERO_TIME = datetime(1, 1, 1, tzinfo=UTC)  # Go's, where a sentinel has no time
_LOG_LINE = re.compile(r"^(?:DEBUG|INFO|WARNING|ERROR|FATAL)\S*:? \d{4}/\d\d/\d\d ", re.MULTILINE)


def read(stream: Readable, *, id_prefix: str) -> Iterator[Entry | Skipped]:
    """The entries of a listing, in its order; the stream is read as they are taken, in bounded memory.

    Raises:
        InvalidIdPrefix: at once.
        InvalidListing: when the input turns out not to be such a listing, or to end early.
        InvalidEntry: at an entry that cannot be a backup.
    """
    check_id_prefix(id_prefix)
    return _entries(stream, id_prefix)


def _entries(stream: Readable, id_prefix: str) -> Iterator[Entry | Skipped]:
    try:
        for number, item in enumerate(JsonArray(stream), start=1):
            yield _entry(item, number, id_prefix)
    except NotAnArray as exc:
        raise InvalidListing(f"{_complaint(exc)} Nothing was imported.") from exc


def _entry(item: dict[str, Any], number: int, id_prefix: str) -> Entry | Skipped:
    name = item.get("Name")
    label = f"entry {number} ({shown(name)})" if isinstance(name, str) else f"entry {number}"
    if name is None and "backup_name" in item:
        raise InvalidListing(_other_listing(item))
    matched = _NAME.fullmatch(name) if isinstance(name, str) else None
    if not matched:
        raise InvalidEntry(label, "Name", f"{shown(name)} is not the name of a backup of Greenplum" if "Name" in item else "is missing")
    finished = _time(label, item, "finish_time")
    if finished == _ZERO_TIME:
        return Skipped("finish time unknown: made by a WAL-G of before September 2021")
    created_at = checked_time(label, "finish_time", finished)
    started_at = checked_time(label, "start_time", _time(label, item, "start_time"))
    if started_at > created_at:
        raise InvalidEntry(label, "start_time", f"{started_at.isoformat()} is after finish_time, {created_at.isoformat()}")
    return Entry(
        label=label,
        id=_id(label, item, name=matched[1] + (matched[3] or ""), id_prefix=id_prefix),
        created_at=created_at,
        started_at=started_at,
        size=checked_size(label, "compressed_size", _required(label, item, "compressed_size")),
    )


def _other_listing(item: dict[str, Any]) -> str:
    if "start_time" in item or "start_lsn" in item:
        return f"this is WAL-G's listing of a PostgreSQL, not of a Greenplum (which `{_COMMAND}` prints, run by a WAL-G for Greenplum)"
    return f"this listing was made without --detail, so it has no times of the backups: `{_COMMAND}`"


def _id(label: str, item: dict[str, Any], *, name: str, id_prefix: str) -> str:
    """Return the id that a control plane gave to the backup, else one made of prefix and name.

    Raises:
        InvalidEntry: The given id cannot be one. It is not altered, because the control plane knows it.
    """
    user_data = item.get("user_data")
    given = user_data.get("backup_id") if isinstance(user_data, dict) else None
    if not isinstance(given, str) or not given:
        return f"{id_prefix}:{name}"
    checked_id(label, "user_data.backup_id", given)
    # Imports of other clusters make such ids. An import that took one in advance would block theirs.
    other, colon, _ = given.rpartition(":")
    if colon and other != id_prefix:
        raise InvalidEntry(
            label,
            "user_data.backup_id",
            f"{shown(given)} has the form of the ids that an import with the prefix {shown(other)} makes, "
            f"and the prefix of this import is {shown(id_prefix)}",
        )
    return given


def _time(label: str, item: dict[str, Any], field: str) -> datetime:
    """RFC 3339 with any offset, cut to microseconds. WAL-G's own `date_fmt` is wrong for times without a fraction."""
    text = _required(label, item, field)
    if isinstance(text, str) and _RFC3339.fullmatch(text.upper()):
        try:
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass  # the 30th of February
    raise InvalidEntry(label, field, f"{shown(text)} is no time such as 2026-11-20T02:41:58.826199Z")


def _required(label: str, item: dict[str, Any], field: str) -> object:
    if field not in item:
        raise InvalidEntry(label, field, "is missing")
    return item[field]


def _complaint(trouble: NotAnArray) -> str:
    if log_line := _LOG_LINE.search(trouble.text):
        number = trouble.lines_before + trouble.text.count("\n", 0, log_line.start()) + 1
        return f"line {number} is a line of WAL-G's log: give its standard output alone (drop `2>&1`)."
    if trouble.reason == "empty":
        return (
            "the input is empty. WAL-G prints nothing where there are no backups, but also where it failed: look at its log. "
            "(If no backups are left, `echo '[]'` and --prune --prune-any say so.)"
        )
    if trouble.reason == "no array":
        return f"this is {_kind(trouble.text.lstrip())}, not the JSON array that `{_COMMAND}` prints."
    where = f"after {trouble.elements} whole entries"
    what = f"the input ends early, {where}" if trouble.reason == "ends early" else f"{where}: {trouble.reason}"
    return f"{what}. It must be all that `{_COMMAND}` prints, unchanged."


def _kind(start: str) -> str:
    """What an input that is no JSON array seems to be."""
    if start.startswith("backupconfigs:"):
        return "gpbackup's history in YAML"
    if start.startswith("{"):
        return "a JSON object"
    if re.match(r"(?i)name\s|backup_name\s|\+--|backup_\d", start):
        return "a table for people, made without --json"
    return "something else"
