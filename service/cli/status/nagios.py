"""Output of `status --nagios`: one line with performance data, and the exit status of a monitoring plugin.

The exit statuses are 0 OK, 1 WARNING, 2 CRITICAL and 3 UNKNOWN. Every error is UNKNOWN, including a wrong command line.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import typer

from service.cli import streams
from service.cli.formatting import duration, printable
from service.cli.rules.overdue import Overdue, lines, name_of
from service.errors import Error
from service.postgres.freshness import Freshness

UNKNOWN = 3
_STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_REASONS_MAX = 3  # Nagios cuts long lines


class Thresholds(NamedTuple):
    """Ages of the last restorable backup, for the warning and for the performance data."""

    warn_age: timedelta | None
    max_age: timedelta | None


class Report(NamedTuple):
    """An exit status and the line to print."""

    status: int
    line: str


def report(rows: Sequence[Freshness], overdue: Sequence[Overdue], now: datetime, thresholds: Thresholds) -> Report:
    """Return the report on judged rows. A broken rule is critical; an age above `warn_age` or a failed attempt is a warning."""
    critical = [line.removeprefix("Overdue: ").rstrip(".") for line in lines(overdue)]
    if not rows and not critical:
        critical = ["nothing was imported"]
    warnings = list(_warnings(rows, now, thresholds.warn_age))
    status = 2 if critical else 1 if warnings else 0
    text = _shortened(critical or warnings) or f"{len(rows)} checked"
    return Report(status, _line(status, text, _performance_data(rows, overdue, now, thresholds)))


def _warnings(rows: Sequence[Freshness], now: datetime, warn_age: timedelta | None) -> Iterator[str]:
    for row in rows:
        name = name_of(row.source_cluster_id, row.tool, row.database)
        if warn_age is not None and row.last_created_at is not None and (age := now - row.last_created_at) > warn_age:
            yield f"{name}: the last restorable backup was completed {duration(age)} ago"
        if row.failed_attempts or row.run_state(now) == "crashed":
            yield f"{name}: an attempt failed after the last restorable backup"


def _shortened(reasons: list[str]) -> str:
    shown = "; ".join(reasons[:_REASONS_MAX])
    return f"{shown}; and {len(reasons) - _REASONS_MAX} more" if len(reasons) > _REASONS_MAX else shown


def _performance_data(rows: Sequence[Freshness], overdue: Sequence[Overdue], now: datetime, thresholds: Thresholds) -> str:
    """Return `label=value[unit];warning;critical;minimum` of the oldest last backup and of counts. An unknown value is U."""
    ages = [(now - row.last_created_at).total_seconds() for row in rows if row.last_created_at is not None]
    limits = ";".join("" if limit is None else f"{limit.total_seconds():.0f}" for limit in thresholds)
    age = f"{max(max(ages), 0):.0f}s" if ages else "U"
    attempts = [row.failed_attempts for row in rows if row.failed_attempts is not None]
    counts = {
        "checked": len(rows),
        "overdue": len({each[:3] for each in overdue}),
        "failed": sum(attempts) if attempts else "U",
        "broken": sum(row.broken for row in rows),
        "unknown": sum(row.unknown for row in rows),
        "missing": sum(row.missing for row in rows),
    }
    return " ".join([f"age={age};{limits};0", *(f"{label}={count};;;0" for label, count in counts.items())])


def _line(status: int, text: str, performance_data: str = "") -> str:
    """Return the line. A `|` would begin performance data, and a line break would end the line."""
    message = printable(text).replace("|", "\\x7c")
    return f"BACKUPS {_STATES[status]} - {message}" + (f" | {performance_data}" if performance_data else "")


def run(app: Callable[..., object]) -> int:
    """Run the command and return its exit status. An error is one line on standard output, with status 3.

    Raises:
        OSError: standard output cannot be written.
    """
    try:
        status = app(prog_name="backup-service", standalone_mode=False)
    except typer.TyperException as exc:
        return _unknown(getattr(exc, "format_message", exc.__str__)())
    except Error as exc:
        return _unknown(str(exc))
    except (KeyboardInterrupt, typer.Abort):
        return _unknown("interrupted")
    except Exception as exc:
        if isinstance(exc, OSError) and streams.is_output_error(exc):
            raise
        traceback.print_exc()
        return _unknown(f"unexpected error: {type(exc).__name__}")
    return status if isinstance(status, int) else 0


def _unknown(message: str) -> int:
    print(_line(UNKNOWN, " ".join(message.split())))
    return UNKNOWN
