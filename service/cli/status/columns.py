"""Table and JSON of `status`, both made from one list of fields."""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, TypeAlias

from service.cli import formatting
from service.cli.formatting import duration, printable
from service.cli.rules.overdue import Overdue
from service.cli.table import Column
from service.postgres.freshness import Freshness

Value: TypeAlias = str | int | datetime | timedelta | None


class Field(NamedTuple):
    """A fact of `status`: its value, its name in JSON, and its column."""

    name: str | None
    """None: other fields of JSON contain the facts that this column summarizes."""
    header: str | None
    """None: the table has no column for it."""
    value: Callable[[Freshness, datetime], Value]
    """Of the row and the current time. A duration is in seconds in JSON; an unknown value is null, and `-` in the table."""
    align: Literal["left", "right"] = "left"
    dropped: int = 0
    """On a narrow terminal, columns with the lowest number are left out first, of equal ones the leftmost. 0: never left out."""
    text: Callable[[int], str] = str
    """For numbers."""


# A new fact of `status` is one line here.
FIELDS = (
    Field("folderId", "FOLDER", lambda row, _: row.folder_id, dropped=8),
    Field("clusterId", "CLUSTER", lambda row, _: row.source_cluster_id),
    Field("tool", "TOOL", lambda row, _: row.tool),
    Field("database", "DATABASE", lambda row, _: row.database or None),
    Field("lastBackupId", None, lambda row, _: row.last_backup_id),
    Field("lastCompletedAt", "LAST RESTORABLE", lambda row, _: row.last_created_at, dropped=5),
    Field("ageSeconds", "AGE", lambda row, now: _age(row.last_created_at, now), align="right"),
    Field("lastBaseId", None, lambda row, _: row.last_base_id),
    Field("lastBaseCompletedAt", None, lambda row, _: row.last_base_created_at),
    Field("baseAgeSeconds", "BASE AGE", lambda row, now: _age(row.last_base_created_at, now), align="right", dropped=11),
    Field("lastPartialId", None, lambda row, _: row.last_partial_id),
    Field("lastPartialCompletedAt", None, lambda row, _: row.last_partial_created_at),
    Field("partialAgeSeconds", "PARTIAL AGE", lambda row, now: _age(row.last_partial_created_at, now), align="right", dropped=4),
    Field("method", "METHOD", lambda row, _: row.last_method, dropped=6),
    Field("durationSeconds", "DURATION", lambda row, _: row.last_duration, align="right", dropped=2),
    Field("sizeBytes", "SIZE", lambda row, _: row.last_size, align="right", text=formatting.size, dropped=7),
    Field(None, "FINDINGS", lambda row, now: ", ".join(findings(row, now)) or None),
    Field("failedAttempts", None, lambda row, _: row.failed_attempts),
    Field("lastFailedName", None, lambda row, _: row.last_failed_name),
    Field("lastFailedStartedAt", None, lambda row, _: row.last_failed_started_at),
    Field("runningName", None, lambda row, _: row.running_name),
    Field("runningStartedAt", None, lambda row, _: row.running_started_at),
    Field("runState", None, lambda row, now: row.run_state(now)),
    Field("restorable", None, lambda row, _: row.restorable),
    Field("partial", None, lambda row, _: row.partial),
    Field("broken", None, lambda row, _: row.broken),
    Field("unknown", None, lambda row, _: row.unknown),
    Field("missing", None, lambda row, _: row.missing),
    Field("skipped", "SKIPPED", lambda row, _: row.skipped, align="right", dropped=10),
    Field("unusable", None, lambda row, _: row.unusable),
    Field("excluded", None, lambda row, _: row.excluded),
    Field("backups", "BACKUPS", lambda row, _: row.backups, align="right", dropped=3),
    Field("lastImportedAt", "LAST IMPORTED", lambda row, _: row.imported_at, dropped=1),
    Field("importAgeSeconds", "IMPORT AGE", lambda row, now: _age(row.imported_at, now), align="right", dropped=9),
)


def columns(now: datetime) -> list[Column[Freshness]]:
    """Return the columns of `status`."""
    return [_column(field, field.header, now) for field in FIELDS if field.header]


def _column(field: Field, header: str, now: datetime) -> Column[Freshness]:
    return Column(header=header, text=lambda row: _text(field, field.value(row, now)), align=field.align, dropped=field.dropped)


def status_json(rows: Iterable[Freshness], now: datetime, overdue: Iterable[Overdue] | None) -> str:
    """Return all fields as JSON; if the rows were judged, add `overdue`, the list of broken rules."""
    report: dict[str, object] = {"clusters": [_object(row, now) for row in rows]}
    if overdue is not None:
        report["overdue"] = [
            {"clusterId": each.cluster_id, "tool": each.tool, "database": each.database, "rule": each.rule, "reason": each.reason}
            for each in overdue
        ]
    return json.dumps(report, indent=2)


def _object(row: Freshness, now: datetime) -> dict[str, object]:
    return {field.name: _json(field.value(row, now)) for field in FIELDS if field.name}


def _json(value: Value) -> str | float | None:
    if isinstance(value, datetime):
        return formatting.json_time(value)
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


def findings(row: Freshness, now: datetime) -> Iterator[str]:
    """Return the findings for the operator: runs after the last restorable backup, and backups that cannot be restored."""
    counts = {
        "failed": row.failed_attempts,
        "broken": row.broken,
        "unknown": row.unknown,
        "missing": row.missing,
        "unusable": row.unusable,
    }
    yield from (f"{count} {state}" for state, count in counts.items() if count)
    if state := row.run_state(now):
        yield state
