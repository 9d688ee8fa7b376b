"""Table and JSON of `status`, both made from one list of fields, and the check of ages."""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, TypeAlias

from service.cli import formatting
from service.cli.formatting import duration, printable
from service.cli.table import Column
from service.entry import CLOCK_TOLERANCE
from service.postgres.freshness import Freshness

Value: TypeAlias = str | int | datetime | timedelta | None


class Field(NamedTuple):
    """A fact of `status`: its value, its name in JSON, and its column."""

    name: str
    header: str | None
    """None: the table has no column for it."""
    value: Callable[[Freshness, datetime], Value]
    """Of the row and the current time. A duration is in seconds in JSON; an unknown value is null, and `-` in the table."""
    align: Literal["left", "right"] = "left"
    dropped: int = 0
    """See `Column.dropped`."""
    text: Callable[[int], str] = str
    """For numbers."""


# A new fact of `status` is one line here.
FIELDS = (
    Field("folderId", "FOLDER", lambda row, _: row.folder_id, dropped=6),
    Field("clusterId", "CLUSTER", lambda row, _: row.source_cluster_id),
    Field("tool", "TOOL", lambda row, _: row.tool),
    Field("database", "DATABASE", lambda row, _: row.database or None),
    Field("lastBackupId", None, lambda row, _: row.last_backup_id),
    Field("lastCompletedAt", "LAST COMPLETED", lambda row, _: row.last_created_at, dropped=3),
    Field("ageSeconds", "AGE", lambda row, now: _age(row.last_created_at, now), align="right"),
    Field("durationSeconds", "DURATION", lambda row, _: row.last_duration, align="right", dropped=2),
    Field("sizeBytes", "SIZE", lambda row, _: row.last_size, align="right", text=formatting.size, dropped=5),
    Field("backups", "BACKUPS", lambda row, _: row.backups, align="right", dropped=4),
    Field("lastImportedAt", "LAST IMPORTED", lambda row, _: row.imported_at, dropped=1),
    Field("importAgeSeconds", "IMPORT AGE", lambda row, now: _age(row.imported_at, now), align="right"),
)


def columns(now: datetime) -> list[Column[Freshness]]:
    """Return the columns of `status`."""
    return [_column(field, field.header, now) for field in FIELDS if field.header]


def _column(field: Field, header: str, now: datetime) -> Column[Freshness]:
    return Column(header=header, text=lambda row: _text(field, field.value(row, now)), align=field.align, dropped=field.dropped)


def status_json(rows: Iterable[Freshness], now: datetime, max_age: timedelta | None) -> str:
    """Return all fields as JSON; with a limit also `overdue`, the list of reasons."""
    return json.dumps({"clusters": [_object(row, now, max_age) for row in rows]}, indent=2)


def _object(row: Freshness, now: datetime, max_age: timedelta | None) -> dict[str, object]:
    facts: dict[str, object] = {field.name: _json(field.value(row, now)) for field in FIELDS}
    return facts if max_age is None else facts | {"overdue": list(overdue(row, now, max_age))}


def _json(value: Value) -> str | float | None:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value.total_seconds() if isinstance(value, timedelta) else value


def _text(field: Field, value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return formatting.time(value)
    if isinstance(value, timedelta):
        return duration(value)
    return printable(value) if isinstance(value, str) else field.text(value)


def _age(time: datetime | None, now: datetime) -> timedelta | None:
    return None if time is None else now - time


def overdue(row: Freshness, now: datetime, max_age: timedelta) -> Iterator[str]:
    """Return the reasons why the last backup, or the last import, is too old or has an unusable time."""
    if row.last_created_at is None:
        yield "there is no backup"
    elif (age := now - row.last_created_at) > max_age:
        yield f"the last backup was completed {duration(age)} ago"
    elif age < -CLOCK_TOLERANCE:
        yield f"the last backup is dated {duration(-age)} from now"
    if (age := now - row.imported_at) > max_age:
        yield f"the last import was {duration(age)} ago"


def overdue_lines(rows: Iterable[Freshness], now: datetime, max_age: timedelta) -> Iterator[str]:
    """Return a line for each cluster, tool and database that is overdue."""
    for row in rows:
        if reasons := list(overdue(row, now, max_age)):
            tool = f"{row.tool}, database {printable(row.database)}" if row.database else row.tool
            yield f"Overdue: cluster {printable(row.source_cluster_id)}, {tool}: {', and '.join(reasons)}."
