"""WAL-G for Greenplum: the output of `wal-g backup-list --detail --json`.

The output is one JSON array, usually on a single line, of objects with the keys Name, start_time, finish_time, compressed_size, user_data
and others (wal-g/wal-g, internal/databases/greenplum/backup_list_handler.go). It contains completed backups only, each of a whole cluster.

- `created_at` is finish_time and `started_at` is start_time. The time in the name is not used: it is the coordinator's local time,
  although it ends in Z.
- `size` is compressed_size: the bytes of the backup's own files. Since WAL-G 2.0.0 none of its sizes includes the append-optimized files
  that backups share.
- The id is user_data.backup_id if a control plane has set it, otherwise `prefix:name`. An id that is set may not have the form of an id
  that another prefix makes.
- An increment needs its direct parent, increment_from.
- Memory is bounded: one entry at a time, of at most 1,048,576 characters (json_array.py).
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from service.entry import (
    ENDS_BEFORE_IT_STARTS,
    EXCLUDED,
    TOO_EARLY,
    Entry,
    Listed,
    Selection,
    Skipped,
    Unusable,
    check_id_prefix,
    checked_id,
    checked_size,
    checked_time,
    quoted,
)
from service.errors import InvalidEntry, InvalidListing
from service.importers.json_array import JsonArray, NotAnArray, Readable

TOOL = "walg"

_COMMAND = "wal-g backup-list --detail --json"
_NAME = re.compile(r"(backup_\d{8}T\d{6}Z)((_D)_\d{8}T\d{6}Z)?", re.ASCII)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)
_ZERO_TIME = datetime(1, 1, 1, tzinfo=UTC)  # Go's zero value, printed for a sentinel without a time
_LOG_LINE = re.compile(r"^(?:DEBUG|INFO|WARNING|ERROR|FATAL)\S*:? \d{4}/\d\d/\d\d ", re.MULTILINE)


def read(stream: Readable, *, id_prefix: str, selection: Selection = Selection()) -> Iterator[Listed]:  # noqa: B008  # immutable
    """Return the entries in the order of the listing. The stream is read while they are consumed, in bounded memory.

    Raises:
        InvalidIdPrefix: raised by this call.
        InvalidListing: raised by the iterator if the input is not such a listing, or ends early.
    """
    check_id_prefix(id_prefix)
    return _entries(stream, id_prefix, selection)


def _entries(stream: Readable, id_prefix: str, selection: Selection) -> Iterator[Listed]:
    try:
        for number, item in enumerate(JsonArray(stream), start=1):
            yield _listed(item, number, id_prefix, selection)
    except NotAnArray as exc:
        raise InvalidListing(f"{_error_message(exc)} Nothing was imported.") from exc


def _listed(item: dict[str, Any], number: int, id_prefix: str, selection: Selection) -> Listed:
    name = item.get("Name")
    if name is None and "backup_name" in item:
        raise InvalidListing(_other_listing_error(item))
    label = f"entry {number} ({quoted(name)})" if isinstance(name, str) else f"entry {number}"
    if isinstance(name, str) and selection.excludes(name):
        return Skipped(name if _NAME.fullmatch(name) else None, EXCLUDED)
    matched = _NAME.fullmatch(name) if isinstance(name, str) else None
    if not matched:
        problem = f"{quoted(name)} is not the name of a backup of Greenplum" if "Name" in item else "is missing"
        return Unusable(None, label, "Name", problem)
    try:
        return _entry(item, label, matched, id_prefix, selection)
    except InvalidEntry as exc:
        return Unusable.by(matched[0], exc)


def _entry(item: dict[str, Any], label: str, name: re.Match[str], id_prefix: str, selection: Selection) -> Entry | Skipped:
    finished = _time(label, item, "finish_time")
    if finished == _ZERO_TIME:
        return Skipped(name[0], "finish time unknown: made by a WAL-G older than September 2021")
    created_at = checked_time(label, "finish_time", finished)
    if selection.is_too_early(created_at):
        return Skipped(name[0], TOO_EARLY)
    started_at = checked_time(label, "start_time", _time(label, item, "start_time"))
    parent = _parent(label, item)
    is_incremental = parent is not None or name[2] is not None
    permanent = item.get("is_permanent")
    return Entry(
        label=label,
        name=name[0],
        id=_id(label, item, name=name[1] + (name[3] or ""), id_prefix=id_prefix),
        created_at=created_at,
        started_at=min(started_at, created_at),
        size=checked_size(label, "compressed_size", _required(label, item, "compressed_size")),
        method="incremental" if is_incremental else "base",
        permanent=permanent if isinstance(permanent, bool) else None,
        needs=() if parent is None else (parent,),
        warnings=(ENDS_BEFORE_IT_STARTS,) if started_at > created_at else (),
    )


def _parent(label: str, item: dict[str, Any]) -> str | None:
    """Return the name of the backup that an increment is based on, or None for a full backup.

    Raises:
        InvalidEntry: the value is not the name of a backup.
    """
    if "increment_from" not in item:
        return None
    parent = item["increment_from"]
    if not isinstance(parent, str) or not _NAME.fullmatch(parent):
        raise InvalidEntry(label, "increment_from", f"{quoted(parent)} is not the name of a backup of Greenplum")
    return parent


def _other_listing_error(item: dict[str, Any]) -> str:
    if "start_time" in item or "start_lsn" in item:
        return f"this listing is of PostgreSQL, not of Greenplum: run `{_COMMAND}` with a WAL-G for Greenplum"
    return f"this listing was made without --detail, so it has no times of the backups: run `{_COMMAND}`"


def _id(label: str, item: dict[str, Any], *, name: str, id_prefix: str) -> str:
    """Return the id that a control plane has set, otherwise the prefix and the name of the backup.

    Raises:
        InvalidEntry: the id that is set is not valid. It is not changed, because the control plane uses it.
    """
    user_data = item.get("user_data")
    given = user_data.get("backup_id") if isinstance(user_data, dict) else None
    if not isinstance(given, str) or not given:
        return f"{id_prefix}:{name}"
    checked_id(label, "user_data.backup_id", given)
    # An id of this form belongs to another cluster, whose import would fail if it were taken.
    other, colon, _ = given.rpartition(":")
    if colon and other != id_prefix:
        raise InvalidEntry(
            label,
            "user_data.backup_id",
            f"{quoted(given)} has the prefix {quoted(other)}, but the prefix of this import is {quoted(id_prefix)}: "
            "only an import with the same prefix may use such an id",
        )
    return given


def _time(label: str, item: dict[str, Any], field: str) -> datetime:
    """Return an RFC 3339 time, truncated to microseconds. WAL-G's own `date_fmt` is wrong for times without a fraction.

    Raises:
        InvalidEntry: the value is not such a time.
    """
    text = _required(label, item, field)
    if isinstance(text, str) and _RFC3339.fullmatch(text.upper()):
        try:
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass  # such as 30 February
    raise InvalidEntry(label, field, f"{quoted(text)} is not a time such as 2026-11-20T02:41:58.826199Z")


def _required(label: str, item: dict[str, Any], field: str) -> object:
    if field not in item:
        raise InvalidEntry(label, field, "is missing")
    return item[field]


def _error_message(error: NotAnArray) -> str:
    if log_line := _LOG_LINE.search(error.text):
        number = error.lines_before + error.text.count("\n", 0, log_line.start()) + 1
        return f"line {number} is a line of WAL-G's log: pass its standard output only (drop `2>&1`)."
    if error.reason == "empty":
        return (
            "the input is empty. WAL-G prints nothing if there are no backups or if it failed: check its log. "
            "(To record that no backups are left, import `echo '[]'` with --prune --prune-any.)"
        )
    if error.reason == "not an array":
        return f"the input is {_description(error.text.lstrip())}, not the JSON array that `{_COMMAND}` prints."
    position = f"after {error.elements} whole entries"
    problem = f"the input ends early, {position}" if error.reason == "ends early" else f"{position}: {error.reason}"
    return f"{problem}. Pass the complete output of `{_COMMAND}`, unchanged."


def _description(start: str) -> str:
    """Return a description of an input that is not a JSON array."""
    if start.startswith("backupconfigs:"):
        return "gpbackup's history in YAML"
    if start.startswith("{"):
        return "a JSON object"
    if re.match(r"(?i)name\s|backup_name\s|\+--|backup_\d", start):
        return "a text table, made without --json"
    return "something else"
