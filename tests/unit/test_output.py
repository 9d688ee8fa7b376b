"""Text and JSON that commands print."""

import json
import re
from datetime import UTC, datetime, timedelta
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from service import pb
from service.cli import formatting, output
from service.cli.chain import columns as chain_columns
from service.cli.imports.summary import summary_lines
from service.cli.rules.overdue import Overdue
from service.cli.status import columns as status_columns
from service.cli.table import Column, Table
from service.postgres.freshness import Freshness
from service.postgres.imports.import_backups import Pruned, Summary, Target
from service.postgres.imports.listing import Noted
from service.postgres.restore_chain import Chain, Link

_NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)


def _backup(**fields: object) -> pb.Backup:
    backup = pb.Backup(id="b1", folder_id="f1", source_cluster_id="c1", size=913800120559)
    backup.created_at.FromDatetime(datetime(2026, 11, 23, 20, 2, 11, 357020, tzinfo=UTC))
    backup.started_at.FromDatetime(datetime(2026, 11, 23, 17, 39, 39, 900817, tzinfo=UTC))
    for name, value in fields.items():
        setattr(backup, name, value)
    return backup


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (913800120559, "851.0 GiB"), (2**63 - 1, "8.0 EiB"), (10**15, "909.5 TiB")],
)
def test_sizes(size: int, text: str) -> None:
    """Sizes are shown in binary units."""
    assert formatting.size(size) == text


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (timedelta(seconds=59.9), "59s"),
        (timedelta(seconds=60), "1m 0s"),
        (timedelta(hours=2, minutes=27, seconds=3), "2h 27m"),
        (timedelta(days=400, hours=5), "400d 5h"),
        (timedelta(hours=-2), "-2h 0m"),
    ],
)
def test_durations(length: timedelta, text: str) -> None:
    """A duration shows its two largest units; a backup dated in the future has a negative age."""
    assert formatting.duration(length) == text


def test_table_of_backups() -> None:
    """Columns keep their width over pages, numbers are aligned right, an unknown value is a dash, and the header is printed once."""
    table = Table(output.columns(_NOW))
    later = _backup(id="b3", size=0)
    later.created_at.FromDatetime(datetime(2026, 1, 1, 2, 3, 4, tzinfo=UTC))
    later.started_at.FromDatetime(datetime(2026, 1, 1, 2, 3, 3, tzinfo=UTC))
    first = [_backup(method=pb.Backup.BASE), _backup(id="longer", method=pb.Backup.INCREMENTAL)]
    assert [*table.lines(first), *table.lines([later])] == [
        "ID      CLUSTER  COMPLETED                  AGE  DURATION  METHOD             SIZE",
        "b1      c1       2026-11-23 20:02:11Z    1d 15h    2h 22m  base          851.0 GiB",
        "longer  c1       2026-11-23 20:02:11Z    1d 15h    2h 22m  incremental   851.0 GiB",
        "b3      c1       2026-01-01 02:03:04Z   328d 9h        1s  -                     -",
    ]


def test_cells_that_are_too_long() -> None:
    """A cell that is longer than its column moves the rest of its own row, only as far as needed."""
    columns: list[Column[str]] = [
        Column(header="NAME", text=str),
        Column(header="COUNT", text=lambda _: "1", align="right", min_width=8),
        Column(header="LAST", text=lambda _: "x"),
    ]
    table = Table(columns)
    assert [*table.lines(["a"]), *table.lines(["abcdefg", "abcdefghijklmnop"])] == [
        "NAME     COUNT  LAST",
        "a            1  x",
        "abcdefg      1  x",
        "abcdefghijklmnop  1  x",
    ]


@pytest.mark.parametrize(
    ("width", "headers", "left_out"),
    [
        (120, ["ID", "CLUSTER", "COMPLETED", "AGE", "DURATION", "METHOD", "SIZE"], []),
        (80, ["ID", "COMPLETED", "AGE", "SIZE"], ["DURATION", "METHOD", "CLUSTER"]),
        (20, ["ID", "COMPLETED"], ["DURATION", "METHOD", "CLUSTER", "SIZE", "AGE"]),
    ],
)
def test_narrow_terminals(width: int, headers: list[str], left_out: list[str]) -> None:
    """Columns that do not fit the terminal are left out, the least important first, and named."""
    table = Table(output.columns(_NOW), max_width=width)
    lines = list(table.lines([_backup(id="demo-cluster:20261122T031502Z_D", source_cluster_id="demo-cluster")]))
    assert (lines[0].split(), table.left_out) == (headers, left_out)
    assert max(map(len, lines)) <= max(width, len("demo-cluster:20261122T031502Z_D  2026-11-23 20:02:11Z"))


def test_control_characters() -> None:
    """Characters that a terminal would interpret are escaped."""
    [_, line] = Table(output.columns(_NOW)).lines([_backup(source_cluster_id="c\x1b[2Jж")])
    assert "c\\x1b[2Jж" in line
    assert line.isprintable()


def test_json_of_a_backup() -> None:
    """JSON has the public API's names, and an int64 is a string, as protobuf specifies."""
    assert json.loads(output.json(_backup())) == {
        "id": "b1",
        "folderId": "f1",
        "createdAt": "2026-11-23T20:02:11.357020Z",
        "sourceClusterId": "c1",
        "startedAt": "2026-11-23T17:39:39.900817Z",
        "size": "913800120559",
    }


_ROW = Freshness._make([0] * len(Freshness._fields))._replace(
    folder_id="f1",
    source_cluster_id="c\x1b1",
    tool="walg",
    database="",
    imported_at=_NOW - timedelta(minutes=5),
    skipped=7,
    unusable=1,
    excluded=2,
    backups=1234,
    restorable=1230,
    partial=1,
    broken=2,
    missing=3,
    last_backup_id="b1",
    last_created_at=_NOW - timedelta(hours=3),
    last_base_id="b0",
    last_base_created_at=_NOW - timedelta(days=3),
    last_partial_id=None,
    last_partial_created_at=None,
    failed_attempts=None,
    last_failed_name=None,
    last_failed_started_at=None,
    running_name="n5",
    running_started_at=_NOW - timedelta(hours=1),
    last_duration=timedelta(seconds=90.5),
    last_size=1536,
    last_method="incremental",
)
_NO_BACKUP: dict[str, Any] = {name: None for name, hint in get_type_hints(Freshness).items() if NoneType in get_args(hint)}
_ROW_WITHOUT_BACKUP = _ROW._replace(**_NO_BACKUP, backups=0, broken=0, missing=0, unusable=0)


_CELLS = {
    "FOLDER": "f1",
    "CLUSTER": r"c\x1b1",
    "TOOL": "walg",
    "DATABASE": "-",
    "LAST RESTORABLE": "2026-11-25 09:00:00Z",
    "AGE": "3h 0m",
    "BASE AGE": "3d 0h",
    "PARTIAL AGE": "-",
    "METHOD": "incremental",
    "DURATION": "1m 30s",
    "SIZE": "1.5 KiB",
    "FINDINGS": "2 broken, 3 missing, 1 unusable, running",
    "SKIPPED": "7",
    "BACKUPS": "1234",
    "LAST IMPORTED": "2026-11-25 11:55:00Z",
    "IMPORT AGE": "5m 0s",
}
_ENTRY = {
    "folderId": "f1",
    "clusterId": "c\x1b1",
    "tool": "walg",
    "database": None,
    "lastBackupId": "b1",
    "lastCompletedAt": "2026-11-25T09:00:00Z",
    "ageSeconds": 10800.0,
    "lastBaseId": "b0",
    "lastBaseCompletedAt": "2026-11-22T12:00:00Z",
    "baseAgeSeconds": 259200.0,
    "lastPartialId": None,
    "lastPartialCompletedAt": None,
    "partialAgeSeconds": None,
    "method": "incremental",
    "durationSeconds": 90.5,
    "sizeBytes": 1536,
    "failedAttempts": None,
    "lastFailedName": None,
    "lastFailedStartedAt": None,
    "runningName": "n5",
    "runningStartedAt": "2026-11-25T11:00:00Z",
    "runState": "running",
    "restorable": 1230,
    "partial": 1,
    "broken": 2,
    "unknown": 0,
    "missing": 3,
    "skipped": 7,
    "unusable": 1,
    "excluded": 2,
    "backups": 1234,
    "lastImportedAt": "2026-11-25T11:55:00Z",
    "importAgeSeconds": 300.0,
}


def test_table_and_json_of_status() -> None:
    """The table and the JSON of `status` show the same facts, because both come from one list of fields."""
    table = list(Table(status_columns.columns(_NOW)).lines([_ROW]))
    cells = [re.split(r"  +", line) for line in table]
    assert dict(zip(*cells, strict=True)) == _CELLS
    assert json.loads(status_columns.status_json([_ROW], _NOW, None)) == {"clusters": [_ENTRY]}
    names = [field.name for field in status_columns.FIELDS if field.name]
    assert names == list(json.loads(status_columns.status_json([_ROW], _NOW, None))["clusters"][0])


def test_status_without_a_backup() -> None:
    """Unknown facts are `-` in the table and null in JSON; JSON has the broken rules."""
    header, line = (re.split(r"  +", line) for line in Table(status_columns.columns(_NOW)).lines([_ROW_WITHOUT_BACKUP]))
    cells = dict(zip(header, line, strict=True))
    unknown = ["DATABASE", "LAST RESTORABLE", "AGE", "BASE AGE", "PARTIAL AGE", "METHOD", "DURATION", "SIZE", "FINDINGS"]
    assert [name for name, cell in cells.items() if cell == "-"] == unknown
    assert (cells["SKIPPED"], cells["BACKUPS"]) == ("7", "0")
    overdue = [Overdue("c1", "walg", None, "no-restorable-backup", "there is no restorable backup")]
    report = json.loads(status_columns.status_json([_ROW_WITHOUT_BACKUP], _NOW, overdue))
    [shown] = report["clusters"]
    assert [shown[name] for name in ("lastBackupId", "lastCompletedAt", "ageSeconds", "durationSeconds", "sizeBytes")] == [None] * 5
    assert report["overdue"] == [
        {"clusterId": "c1", "tool": "walg", "database": None, "rule": "no-restorable-backup", "reason": "there is no restorable backup"}
    ]


def test_status_at_80_columns() -> None:
    """At 80 columns `status` keeps the cluster, tool, database, age and findings."""
    row = _ROW._replace(folder_id="demo-folder", source_cluster_id="demo-cluster", tool="gpbackup", unusable=0, running_started_at=None)
    table = Table(status_columns.columns(_NOW), max_width=80)
    lines = list(table.lines([row]))
    assert lines[0].split() == ["CLUSTER", "TOOL", "DATABASE", "AGE", "BASE", "AGE", "FINDINGS", "SKIPPED"]
    assert max(map(len, lines)) <= 80


_TARGET = Target("f1", "c1", "gpbackup")
_SUMMARY = Summary(dry_run=False, entries=9, added=1, changed=2, unchanged=3, pruned=Pruned(4, None), moved=0, skipped={})


def test_summary_of_an_import() -> None:
    """The summary of an import has all counts, and the reasons why entries were skipped."""
    summary = _SUMMARY._replace(skipped={"too old": 2, "running": 1})
    assert list(summary_lines(summary, _TARGET)) == [
        "Imported cluster c1 into folder f1: 1 added, 2 changed, 3 unchanged, 4 removed, 3 skipped.",
        "  2 skipped: too old",
        "  1 skipped: running",
    ]


def test_types_and_warnings_of_an_import() -> None:
    """The summary counts the types of backups, and each warning with one backup as an example."""
    summary = _SUMMARY._replace(
        types={"full": 2, "incremental": 1}, warnings={"of size 0": Noted(2, "backup 1"), "ambiguous": Noted(1, "backup 2")}
    )
    assert list(summary_lines(summary, _TARGET))[1:] == [
        "  The listing has 2 full, 1 incremental.",
        "  2 of size 0 [backup 1 and others]",
        "  1 ambiguous [backup 2]",
    ]


@pytest.mark.parametrize(
    ("tool", "state", "cause"),
    [
        ("walg", "broken", "the listing lacks a backup that a restore needs (a storage that is down looks the same)"),
        ("gpbackup", "broken", "a backup that a restore needs is deleted, being deleted, or no longer in the history"),
        ("walg", "unknown", "a backup that a restore needs was left out, or is not recorded"),
        ("gpbackup", "unknown", "a backup that a restore needs was left out, has no row, or is not recorded"),
    ],
)
def test_chains_of_an_import(tool: str, state: str, cause: str) -> None:
    """The summary counts backups with a broken or unknown chain, with the causes that the tool allows and one backup as an example."""
    lines = list(summary_lines(_SUMMARY._replace(chains={state: Noted(2, "n1")}), _TARGET._replace(tool=tool)))
    assert lines[1] == f"  2 with a{'n unknown' if state == 'unknown' else ' broken'} chain: {cause} [n1 and others]"


def test_length_of_a_summary() -> None:
    """A summary has at most 20 reasons, for any listing."""
    lines = list(summary_lines(_SUMMARY._replace(skipped={f"status unknown: '{n}'": 1 for n in range(1000)}), _TARGET))
    assert len(lines) < 25
    assert "  and so on, 980 more lines" in lines


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"added": 0, "changed": 0, "pruned": Pruned(0, None)}, "The catalog is already up to date."),
        ({"added": 0, "changed": 0, "unchanged": 0, "pruned": Pruned(0, None)}, "Nothing was imported: the listing has no usable entry."),
    ],
)
def test_imports_without_changes(changes: dict[str, object], text: str) -> None:
    """An import that changed nothing prints the reason."""
    assert list(summary_lines(_SUMMARY._replace(**changes), _TARGET))[-1] == text  # type: ignore[arg-type]


def test_chain_of_one_partial_backup() -> None:
    """`chain` shows the contents of a partial backup instead of its method, and empty lists if no other backup is in its chain."""
    backup = Link("b1", "n1", _NOW, _NOW, "base", "data only", 1536, "usable", None)
    chain = Chain(backup, "f1", "c1", "gpbackup", "demo", needs=[], needed_by=[])
    header, line = (re.split(r"  +", line) for line in Table(chain_columns.columns()).lines(chain_columns.rows(chain)))
    assert dict(zip(header, line, strict=True))["KIND"] == "data only"
    found = json.loads("\n".join(chain_columns.json_lines(chain)))
    assert (found["contents"], found["needs"], found["neededBy"]) == ("data only", [], [])
