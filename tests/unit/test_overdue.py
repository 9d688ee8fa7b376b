"""Rules of freshness, and the files that name the clusters which must meet them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.cli.rules.expected import Expected, read_expected
from service.cli.rules.overdue import Limits, Overdue, judge, lines
from service.errors import CommandError
from service.postgres.freshness import Freshness

_NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
_HOUR = timedelta(hours=1)
_ROW = Freshness._make([0] * len(Freshness._fields))._replace(
    folder_id="f1",
    source_cluster_id="c1",
    tool="gpbackup",
    database="sales",
    imported_at=_NOW - _HOUR,
    restorable=1,
    last_created_at=_NOW - 25 * _HOUR,
    last_base_created_at=_NOW - 100 * _HOUR,
)
_NONE: dict[str, Any] = {"restorable": 0, "last_created_at": None, "last_base_created_at": None}
_DAY = Limits(26 * _HOUR)


@pytest.mark.parametrize(
    ("changes", "limits", "rules"),
    [
        ({}, _DAY, []),
        ({}, Limits(), []),
        ({}, Limits(24 * _HOUR), ["max-age"]),
        ({"last_created_at": _NOW - 26 * _HOUR}, _DAY, []),
        ({"last_created_at": _NOW - 26 * _HOUR - timedelta(seconds=1)}, _DAY, ["max-age"]),
        ({"imported_at": _NOW - 27 * _HOUR}, _DAY, ["import-age"]),
        ({}, Limits(None, 99 * _HOUR), ["max-age-base"]),
        ({}, Limits(None, 100 * _HOUR), []),
        ({"last_base_created_at": None}, Limits(26 * _HOUR, 100 * _HOUR), ["no-restorable-base"]),
        ({"imported_at": _NOW - 27 * _HOUR}, Limits(None, 100 * _HOUR), []),
        ({"imported_at": _NOW - 101 * _HOUR}, Limits(None, 100 * _HOUR), ["import-age"]),
        (_NONE, Limits(), ["no-restorable-backup"]),
        (_NONE, Limits(26 * _HOUR, 100 * _HOUR), ["no-restorable-backup", "no-restorable-base"]),
        (_NONE | {"broken": 2}, _DAY, ["no-restorable-backup"]),
        (_NONE | {"missing": 1}, _DAY, ["no-restorable-backup"]),
        (_NONE | {"unknown": 1}, _DAY, ["no-restorable-backup"]),
        (_NONE | {"partial": 1}, _DAY, ["no-restorable-backup"]),
        ({"broken": 2, "missing": 1, "failed_attempts": 3}, _DAY, []),
        ({"last_created_at": _NOW + 6 * _HOUR}, _DAY, ["future"]),
        ({"last_created_at": _NOW + _HOUR}, _DAY, []),
    ],
)
def test_rules(changes: dict[str, Any], limits: Limits, rules: list[str]) -> None:
    """A row breaks the rule of each age above its limit, and a state without a restorable backup breaks a rule without any limit."""
    assert [found.rule for found in judge([_ROW._replace(**changes)], _NOW, limits, None)] == rules


_SALES, _POSTGRES = _ROW, _ROW._replace(database="postgres", **_NONE)
_WALG = _ROW._replace(source_cluster_id="c2", tool="walg", database="")


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ([Expected("c1", None, None, None)], [("postgres", "no-restorable-backup")]),
        ([Expected("c1", "gpbackup", "sales", None)], []),
        ([Expected("c1", "gpbackup", "sales", 24 * _HOUR)], [("sales", "max-age")]),
        ([Expected("c1", None, None, 24 * _HOUR), Expected("c1", "gpbackup", "sales", 26 * _HOUR)], [("postgres", "no-restorable-backup")]),
        ([Expected("c2", "walg", None, None)], []),
        ([Expected("c2", "gpbackup", None, None)], [(None, "not-imported")]),
        ([Expected("c1", "gpbackup", "typo", None)], [("typo", "not-imported")]),
        ([Expected("c3", None, None, 24 * _HOUR)], [(None, "not-imported")]),
    ],
)
def test_expected_rows(expected: list[Expected], found: list[tuple[str | None, str]]) -> None:
    """Only the named rows are judged, by the most precise line; a line without a row was never imported."""
    overdue = judge([_POSTGRES, _SALES, _WALG], _NOW, _DAY, expected)
    assert [(each.database, each.rule) for each in overdue] == found


def test_lines() -> None:
    """Each cluster, tool and database has one line, with all its reasons and without control characters."""
    overdue = [
        *judge([_ROW._replace(**_NONE, broken=2, missing=1, source_cluster_id="c\x1b1")], _NOW, Limits(timedelta(minutes=5)), None),
        Overdue("c3", None, None, "not-imported", "it was never imported"),
    ]
    assert list(lines(overdue)) == [
        r"Overdue: cluster c\x1b1, gpbackup, database sales: there is no restorable backup (2 broken, 1 missing), "
        "and the last import was 1h 0m ago.",
        "Overdue: cluster c3: it was never imported.",
    ]


def test_expected_lines(tmp_path: Path) -> None:
    """A line has a cluster, a tool, a database and a duration, of which only the cluster is required; names may be quoted."""
    path = tmp_path / "expected"
    lines = ["# production", "", "c0", "c1 26h # nightly", "c2 walg", "  c2\tgpbackup 'Sales DW' 8d\r"]
    path.write_text("\n".join([*lines, 'c3 gpbackup "26h" 26h', r"c4 gpbackup a\#b"]))
    assert read_expected(path) == [
        Expected("c0", None, None, None),
        Expected("c1", None, None, 26 * _HOUR),
        Expected("c2", "walg", None, None),
        Expected("c2", "gpbackup", "Sales DW", timedelta(days=8)),
        Expected("c3", "gpbackup", "26h", 26 * _HOUR),
        Expected("c4", "gpbackup", "a#b", None),
    ]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"c1 barman\n", "line 1: 'barman' is neither a tool (walg, gpbackup) nor a duration such as 26h"),
        (b"c0\nc1 walg demo\n", "line 2: walg backs up whole clusters: leave the database out"),
        (b"c1 gpbackup demo 1w\n", "line 1: '1w' is not a duration such as 26h: a line is `cluster [tool [database]] [max-age]`"),
        (b"#\n\nc1 'x\n", "line 3: no closing quotation"),
        (b"''\n", "line 1: the cluster is empty"),
        (b"c1 walg\nc2\nc1 walg 26h\n", "line 3: the same cluster, tool and database as in line 1"),
        (b"c1 \x1b[2J\n", r"line 1: '\\x1b[2J' is neither"),
    ],
)
def test_bad_lines(tmp_path: Path, content: bytes, error: str) -> None:
    """The error of a malformed line names the file and the line."""
    path = tmp_path / "expected"
    path.write_bytes(content)
    with pytest.raises(CommandError) as raised:
        read_expected(path)
    assert str(raised.value).startswith(f"--expect {path}, {error}")


@pytest.mark.parametrize(("content", "error"), [(b"\xff\n", "not UTF-8"), (b"# none\n", "names no cluster"), (None, "No such file")])
def test_bad_files(tmp_path: Path, content: bytes | None, error: str) -> None:
    """The error of a file that cannot be used names the file."""
    path = tmp_path / "expected"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CommandError, match=error) as raised:
        read_expected(path)
    assert str(path) in str(raised.value)
