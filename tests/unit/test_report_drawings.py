"""Calendars and charts of the report."""

import re
from datetime import date, timedelta

import pytest

from service.cli.report.drawings import CHART_HEIGHT, calendars, chart, symbol
from service.cli.report.page import KINDS
from service.postgres.history import Kind, Period

_MONDAY = date(2026, 11, 2)


def _days(path: str) -> list[tuple[int, int]]:
    """Return the week and weekday of each day that a path draws."""
    found = []
    for week, weekday, rest in re.findall(r"M(\d+) (\d)([^M]+)", path):
        length = int(run[1] or 0) + 1 if (run := re.fullmatch(r"v(\d*)\.1", rest)) else 1
        found += [(int(week), int(weekday) + number) for number in range(length)]
    return found


def test_days_of_a_calendar() -> None:
    """Each day of the period is drawn once, in the column of its week, in the row of its weekday, with the shape of its kind."""
    kinds: dict[date, Kind] = {
        _MONDAY + timedelta(days=1): "base",
        _MONDAY + timedelta(days=2): "incremental",
        _MONDAY + timedelta(days=3): "incremental",
        _MONDAY + timedelta(days=7): "failed",
        _MONDAY + timedelta(days=8): "failed",
        _MONDAY + timedelta(days=9): "partial",
        _MONDAY + timedelta(days=10): "unusable",
        _MONDAY + timedelta(days=11): "incremental",
        _MONDAY: "base",  # before the period
    }
    [found] = calendars(Period(_MONDAY + timedelta(days=1), _MONDAY + timedelta(days=12)), kinds)
    assert (found.first, found.last, found.weeks) == (_MONDAY + timedelta(days=1), _MONDAY + timedelta(days=12), 2)
    assert {kind: _days(path) for kind, path in found.paths.items()} == {
        "base": [(0, 1)],
        "incremental": [(0, 2), (0, 3), (1, 4)],
        None: [(0, 4), (0, 5), (0, 6), (1, 5)],
        "failed": [(1, 0), (1, 1)],
        "partial": [(1, 2)],
        "unusable": [(1, 3)],
    }


@pytest.mark.parametrize(("days", "parts"), [(1, 1), (7, 1), (180, 1), (183, 1), (190, 2), (365, 2), (3660, 20)])
@pytest.mark.parametrize("weekday", range(7))
def test_parts_of_a_calendar(days: int, parts: int, weekday: int) -> None:
    """A period is divided into parts of at most 27 weeks, which together have each day once; half a year has one part."""
    period = Period.until(_MONDAY + timedelta(days=weekday), days)
    assert period.days == days
    found = list(calendars(period, {}))
    assert len(found) == parts
    assert (found[0].first, found[-1].last) == period
    assert sum(len(_days(path)) for part in found for path in part.paths.values()) == days
    assert max(part.weeks for part in found) <= 27


def test_names_of_months() -> None:
    """A month has its name above its first week, unless the name would touch the name before it or the border."""
    [found] = calendars(Period(date(2026, 5, 28), date(2026, 11, 27)), {})
    assert found.months == [(0, "May"), (5, "Jul"), (9, "Aug"), (14, "Sep"), (18, "Oct"), (22, "Nov")]


def test_symbols_differ() -> None:
    """Each kind of day differs from the others by more than its colour: by its path, or by the style of its line."""
    dotted = {"base": "square", "incremental": "round", None: "small"}
    shapes = {dotted.get(kind, symbol(kind)) for kind in KINDS}
    assert len(shapes) == len(KINDS)


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({}, "M0 24h4V24z"),
        ({0: 100.0, 1: 50.0, 3: 25.0}, "M0 24V0h1V12h1V24h1V18h1V24z"),
        ({1: 8.0, 2: 8.0}, "M0 24h1V0h2V24h1V24z"),
        ({0: 0.0, 1: 1000.0, 2: 1.0}, "M0 24V23h1V0h1V23h1V24h1V24z"),
        ({0: 0.0}, "M0 24V23h1V24h3V24z"),
    ],
    ids=["none", "bars", "equal neighbours", "small values", "zero"],
)
def test_chart(values: dict[int, float], path: str) -> None:
    """The largest value is as high as the chart, a known value has at least 1, and an unknown one has no bar."""
    period = Period(_MONDAY, _MONDAY + timedelta(days=3))
    assert CHART_HEIGHT == 24
    assert chart(period, {_MONDAY + timedelta(days=day): value for day, value in values.items()}) == path
