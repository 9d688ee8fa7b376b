"""Paths of the report's SVG drawings: a calendar of days, and a chart of values over days.

A path draws all days of a kind, because an element for each day would make the report five times as large.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import NamedTuple

from service.postgres.history import Kind, Period

CHART_HEIGHT = 24

_WEEKS = 27  # of a calendar; 180 days touch at most this many

# A day is a square of 1. Each kind has a shape of its own, so that colour is not the only sign.
# Dots and squares: one line draws a run of equal days, with a dash of length 0 for each day (report.css). The line is a little longer, so
# that rounding does not drop its last dash.
_LINES: tuple[Kind | None, ...] = ("base", "incremental", None)
_SHAPES: dict[Kind | None, str] = {"partial": "m-.4 0h.8", "failed": "m-.3-.3l.6.6m0-.6l-.6.6", "unusable": "m-.3-.3h.6v.6h-.6z"}


class Calendar(NamedTuple):
    """Columns are weeks, and rows are the days from Monday to Sunday."""

    first: date
    last: date
    weeks: int
    paths: dict[Kind | None, str]
    """By the kind of day; None is a day without a run."""
    months: list[tuple[int, str]]
    """The week that a month begins in, and its name."""


def symbol(kind: Kind | None) -> str:
    """Return the path of one day at 0, 0."""
    return _run(kind, 0, 0, 1)


def _run(kind: Kind | None, week: int, weekday: int, length: int) -> str:
    """Return the path of consecutive days in a week."""
    if kind in _LINES:
        return f"M{week} {weekday}v{length - 1 or ''}.1"
    return "".join(f"M{week} {weekday + number}{_SHAPES[kind]}" for number in range(length))


def calendars(period: Period, kinds: Mapping[date, Kind]) -> Iterator[Calendar]:
    """Return the calendar of a period, in parts that are narrow enough for a telephone."""
    first = period.first
    while first <= period.last:
        monday = first - timedelta(days=first.weekday())
        last = min(monday + timedelta(days=7 * _WEEKS - 1), period.last)
        yield _calendar(Period(first, last), monday, kinds)
        first = last + timedelta(days=1)


def _calendar(period: Period, monday: date, kinds: Mapping[date, Kind]) -> Calendar:
    days = [period.first + timedelta(days=offset) for offset in range(period.days)]
    paths: dict[Kind | None, str] = {}
    for (week, kind), run in itertools.groupby(days, key=lambda day: ((day - monday).days // 7, kinds.get(day))):
        first, *rest = run
        paths[kind] = paths.get(kind, "") + _run(kind, week, first.weekday(), 1 + len(rest))
    return Calendar(*period, (period.last - monday).days // 7 + 1, paths, list(_months(days, monday)))


def _months(days: Sequence[date], monday: date) -> Iterator[tuple[int, str]]:
    """Return the names of the months, unless there is no room for one."""
    room = 0
    for day in days:
        week = (day - monday).days // 7
        if (day.day == 1 or day == days[0]) and room <= week < _WEEKS - 1:
            yield week, f"{day:%b}"
            room = week + 3


def chart(period: Period, values: Mapping[date, float]) -> str:
    """Return the outline of a bar for each day, 1 wide. The largest value is `CHART_HEIGHT` high, and days without a value have no bar."""
    largest = max(values.values(), default=0) or 1
    parts, level, width = [f"M0 {CHART_HEIGHT}"], CHART_HEIGHT, 0
    for offset in range(period.days):
        value = values.get(period.first + timedelta(days=offset))
        top = CHART_HEIGHT if value is None else CHART_HEIGHT - max(1, round(CHART_HEIGHT * value / largest))
        if top != level:
            parts.append(f"h{width}V{top}" if width else f"V{top}")
            level, width = top, 0
        width += 1
    return "".join(parts) + f"h{width}V{CHART_HEIGHT}z"
