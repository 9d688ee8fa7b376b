"""Backups as people read them, and as scripts do."""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from google.protobuf.json_format import MessageToJson

from service import pb
from service.postgres.loading import Summary, Target

_HEADER = ("ID", "CLUSTER", "COMPLETED", "AGE", "DURATION", "SIZE")
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
            self._widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
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
    for reason, count in summary.skipped.items():
        yield f"  {count} skipped: {reason}"
    if summary.dry_run and summary.pruned.refusal:
        yield f"  It would be refused: {summary.pruned.refusal}"
    if not (summary.added or summary.changed or summary.pruned.removed or summary.moved):
        yield "The catalog already said all this: nothing changed." if summary.entries else "The listing has 0 entries: nothing changed."


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
