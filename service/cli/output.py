"""Backups as text and as JSON."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from google.protobuf.json_format import MessageToJson

from service import pb
from service.cli.formatting import duration, printable, size, time
from service.cli.table import Column

_METHODS: dict[int, str] = {pb.Backup.BASE: "base", pb.Backup.INCREMENTAL: "incremental"}


def columns(now: datetime) -> list[Column[pb.Backup]]:
    """Return the columns of `list`."""
    return [
        Column(header="ID", text=lambda backup: printable(backup.id)),
        Column(header="CLUSTER", text=lambda backup: printable(backup.source_cluster_id), dropped=3),
        Column(header="COMPLETED", text=lambda backup: time(_created_at(backup))),
        Column(header="AGE", text=lambda backup: duration(now - _created_at(backup)), align="right", min_width=8, dropped=5),
        Column(header="DURATION", text=lambda backup: duration(_created_at(backup) - _started_at(backup)), align="right", dropped=1),
        Column(header="METHOD", text=lambda backup: _METHODS.get(backup.method, "-"), min_width=11, dropped=2),
        Column(header="SIZE", text=lambda backup: _known_size(backup) or "-", align="right", min_width=10, dropped=4),
    ]


def facts(backup: pb.Backup, now: datetime) -> Iterator[str]:
    """Return one backup as text, a line for each field."""
    created_at, started_at = _created_at(backup), _started_at(backup)
    yield f"id         {printable(backup.id)}"
    yield f"folder     {printable(backup.folder_id)}"
    yield f"cluster    {printable(backup.source_cluster_id)}"
    yield f"started    {started_at.isoformat()}"
    yield f"completed  {created_at.isoformat()} ({duration(now - created_at)} ago, after {duration(created_at - started_at)})"
    yield f"method     {_METHODS.get(backup.method, 'unknown')}"
    yield f"size       {_known_size(backup) or 'unknown'}" + (f" ({backup.size} bytes)" if backup.size else "")


def json(backup: pb.Backup, *, indent: int = 0) -> str:
    """Return protobuf's JSON of a backup, indented by `indent` spaces."""
    return re.sub("^", " " * indent, MessageToJson(backup, indent=2, ensure_ascii=True), flags=re.MULTILINE)


def _known_size(backup: pb.Backup) -> str | None:
    """Return the size in binary units; None if it is unknown, which the API sends as 0."""
    return size(backup.size) if backup.size else None


def _created_at(backup: pb.Backup) -> datetime:
    return backup.created_at.ToDatetime(UTC)


def _started_at(backup: pb.Backup) -> datetime:
    return backup.started_at.ToDatetime(UTC)
