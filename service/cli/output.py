"""Backups as people read them, and as scripts do."""

import json as json_
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from google.protobuf.json_format import MessageToJson

from service import pb
from service.postgres.import_backups import Noted, Summary, Target
from service.postgres.last_imports import Imported
from service.postgres.remove_cluster import Forgotten

_HEADER = ("ID", "CLUSTER", "COMPLETED", "AGE", "DURATION", "SIZE")
_STATUS_HEADER = ("FOLDER", "CLUSTER", "TOOL", "LAST COMPLETED", "AGE", "DURATION", "SIZE", "BACKUPS", "LAST IMPORTED", "AGE")
_LINES_MAX = 20
_COLUMN_MAX_WIDTH = 60  # ids have at most 50 characters; a longer cell of another service widens its own row only
_CLOCKS_APART = timedelta(hours=1)
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


class Table:
    """Lines of a table, page by page: columns are as wide as the first page needs."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._widths: list[int] = []

    def lines(self, backups: Iterable[pb.Backup]) -> Iterator[str]:
        rows = [self._row(backup) for backup in backups]
        if not self._widths:
            rows.insert(0, _HEADER)
            self._widths = [min(_COLUMN_MAX_WIDTH, max(map(len, column))) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, self._widths, strict=True)).rstrip()

    def _row(self, backup: pb.Backup) -> tuple[str, ...]:
        created_at, started_at = backup.created_at.ToDatetime(UTC), backup.started_at.ToDatetime(UTC)
        return (
            printable(backup.id),
            printable(backup.source_cluster_id),
            f"{created_at:%Y-%m-%d %H:%M:%SZ}",
            duration(self._now - created_at),
            duration(created_at - started_at),
            size(backup.size),
        )


def facts(backup: pb.Backup, now: datetime) -> Iterator[str]:
    """One backup, a line a field."""
    created_at, started_at = backup.created_at.ToDatetime(UTC), backup.started_at.ToDatetime(UTC)
    yield f"id         {printable(backup.id)}"
    yield f"folder     {printable(backup.folder_id)}"
    yield f"cluster    {printable(backup.source_cluster_id)}"
    yield f"started    {started_at.isoformat()}"
    yield f"completed  {created_at.isoformat()} ({duration(now - created_at)} ago, after {duration(created_at - started_at)})"
    yield f"size       {size(backup.size)} ({backup.size} bytes)"


def json(backup: pb.Backup, *, indent: int = 0) -> str:
    """Protobuf's JSON of a backup."""
    return re.sub("^", " " * indent, MessageToJson(backup, indent=2, ensure_ascii=True), flags=re.MULTILINE)


def summary_lines(summary: Summary, target: Target) -> Iterator[str]:
    """What an import did."""
    counts = {"added": summary.added, "changed": summary.changed, "unchanged": summary.unchanged, "removed": summary.pruned.removed}
    if summary.moved:
        counts["moved to this folder"] = summary.moved
    skipped = sum(summary.skipped.values())
    told = ", ".join(f"{count} {what}" for what, count in (counts | {"skipped": skipped}).items())
    verb = "Would import" if summary.dry_run else "Imported"
    yield f"{verb} cluster {printable(target.source_cluster_id)} into folder {printable(target.folder_id)}: {told}."
    if summary.kinds:
        yield "  The listing has " + ", ".join(f"{count} {kind}" for kind, count in summary.kinds.items()) + "."
    yield from _first(f"  {count} skipped: {reason}" for reason, count in summary.skipped.items())
    yield from _first(f"  {noted.entries} {warning} [{_example(noted)}]" for warning, noted in summary.warnings.items())
    if summary.dry_run and summary.pruned.refusal:
        yield f"  It would be refused: {summary.pruned.refusal}"
    if not (summary.added or summary.changed or summary.pruned.removed or summary.moved):
        yield (
            "The catalog already said all this: nothing changed."
            if summary.unchanged
            else "The listing has no usable entry: nothing changed."
        )


def status_lines(clusters: Iterable[Imported], now: datetime) -> Iterator[str]:
    """A line a cluster and tool."""
    rows = [_STATUS_HEADER, *(_status_row(each, now) for each in clusters)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _status_row(each: Imported, now: datetime) -> tuple[str, ...]:
    last = each.last_created_at
    return (
        printable(each.folder_id),
        printable(each.source_cluster_id),
        each.tool,
        f"{last:%Y-%m-%d %H:%M:%SZ}" if last else "never",
        duration(now - last) if last else "-",
        "-" if each.last_duration is None else duration(each.last_duration),
        "-" if each.last_size is None else size(each.last_size),
        str(each.backups),
        f"{each.imported_at:%Y-%m-%d %H:%M:%SZ}",
        duration(now - each.imported_at),
    )


def status_json(clusters: Iterable[Imported], now: datetime, max_age: timedelta | None) -> str:
    """The same for scripts; ages and durations in seconds. `overdue` says why one is, and is there with a limit only."""
    return json_.dumps({"clusters": [_status_object(each, now, max_age) for each in clusters]}, indent=2)


def _status_object(each: Imported, now: datetime, max_age: timedelta | None) -> dict[str, object]:
    last = each.last_created_at
    return {
        "folderId": each.folder_id,
        "clusterId": each.source_cluster_id,
        "tool": each.tool,
        "lastBackupId": each.last_backup_id,
        "lastCompletedAt": last and _rfc3339(last),
        "ageSeconds": None if last is None else _seconds(now - last),
        "durationSeconds": None if each.last_duration is None else each.last_duration.total_seconds(),
        "sizeBytes": each.last_size,
        "backups": each.backups,
        "lastImportedAt": _rfc3339(each.imported_at),
        "importAgeSeconds": _seconds(now - each.imported_at),
    } | ({} if max_age is None else {"overdue": list(overdue(each, now, max_age))})


def overdue(each: Imported, now: datetime, max_age: timedelta) -> Iterator[str]:
    """Why a cluster's backups are too old, or not known to be young enough."""
    if each.last_created_at is None:
        yield "there is no backup"
    elif (age := now - each.last_created_at) > max_age:
        yield f"the last backup was completed {duration(age)} ago"
    elif age < -_CLOCKS_APART:
        yield f"the last backup is dated {duration(-age)} from now"
    if (age := now - each.imported_at) > max_age:
        yield f"the last import was {duration(age)} ago"


def overdue_lines(clusters: Iterable[Imported], now: datetime, max_age: timedelta) -> Iterator[str]:
    """A line for each that is."""
    for each in clusters:
        if reasons := list(overdue(each, now, max_age)):
            yield f"Overdue: cluster {printable(each.source_cluster_id)}, {each.tool}: {', and '.join(reasons)}."


def forgotten_lines(cluster_id: str, goes: Iterable[Forgotten], verb: str) -> Iterator[str]:
    """What goes of a cluster; the verb says whether it has, would or will."""
    yield f"{verb} of cluster {printable(cluster_id)}:"
    for each in goes:
        last = f", the last completed {each.last_created_at:%Y-%m-%d %H:%M:%SZ}" if each.last_created_at else ""
        record = ", and the record of their import" if each.was_imported else ""
        yield f"  folder {printable(each.folder_id)}, {each.tool}: {each.backups} backups{last}{record}"


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _seconds(length: timedelta) -> float:
    return round(length.total_seconds(), 3)


def _example(noted: Noted) -> str:
    return noted.example if noted.entries == 1 else f"{noted.example} and others"


def _first(lines: Iterable[str]) -> Iterator[str]:
    """Not all, where a listing makes them endless."""
    taken = list(lines)
    yield from taken[:_LINES_MAX]
    if len(taken) > _LINES_MAX:
        yield f"  and so on, {len(taken) - _LINES_MAX} more lines"


def printable(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def duration(length: timedelta) -> str:
    """The two largest units: `3d 4h`, `2h 27m`, `12s`."""
    if length < timedelta(0):
        return f"-{duration(-length)}"
    minutes, seconds = divmod(int(length.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds}s" if minutes else f"{seconds}s"


def size(count: int) -> str:
    """Bytes in binary units."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in _UNITS:
        amount /= 1024
        if amount < 1024 or unit == _UNITS[-1]:
            return f"{amount:.1f} {unit}"
    raise AssertionError
