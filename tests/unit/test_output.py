"""What people and scripts read."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from service import pb
from service.cli import output
from service.postgres.import_backups import Noted, Pruned, Summary, Target

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
    """Bytes are shown in binary units."""
    assert output.size(size) == text


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
    """A duration shows its two largest units; a backup from the future has a negative age."""
    assert output.duration(length) == text


def test_table() -> None:
    """Columns line up over pages; the header stands once."""
    table = output.Table(_NOW)
    lines = [*table.lines([_backup(), _backup(id="longer")]), *table.lines([_backup(id="b3")])]
    assert lines == [
        "ID      CLUSTER  COMPLETED             AGE     DURATION  SIZE",
        "b1      c1       2026-11-23 20:02:11Z  1d 15h  2h 22m    851.0 GiB",
        "longer  c1       2026-11-23 20:02:11Z  1d 15h  2h 22m    851.0 GiB",
        "b3      c1       2026-11-23 20:02:11Z  1d 15h  2h 22m    851.0 GiB",
    ]


def test_no_control_characters() -> None:
    """What a terminal would obey is shown, not sent."""
    [_, line] = output.Table(_NOW).lines([_backup(source_cluster_id="c\x1b[2Jж")])
    assert "c\\x1b[2Jж" in line
    assert line.isprintable()


def test_json_is_protobufs() -> None:
    """JSON has the public API's names; an int64 is a string."""
    assert json.loads(output.json(_backup())) == {
        "id": "b1",
        "folderId": "f1",
        "createdAt": "2026-11-23T20:02:11.357020Z",
        "sourceClusterId": "c1",
        "startedAt": "2026-11-23T17:39:39.900817Z",
        "size": "913800120559",
    }


def test_summary() -> None:
    """The summary of an import counts everything, and says why entries were skipped."""
    summary = Summary(
        dry_run=False, entries=9, added=1, changed=2, unchanged=3, pruned=Pruned(4, None), moved=0, skipped={"too old": 2, "running": 1}
    )
    assert list(output.summary_lines(summary, Target("f1", "c1", "walg"))) == [
        "Imported cluster c1 into folder f1: 1 added, 2 changed, 3 unchanged, 4 removed, 3 skipped.",
        "  2 skipped: too old",
        "  1 skipped: running",
    ]


def test_summary_of_kinds_and_warnings() -> None:
    """What the API cannot say of a listing is counted, with one backup that it applies to."""
    summary = Summary(
        dry_run=False,
        entries=3,
        added=3,
        changed=0,
        unchanged=0,
        pruned=Pruned(0, None),
        moved=0,
        skipped={},
        kinds={"full": 2, "incremental": 1},
        warnings={"of size 0": Noted(2, "backup 1"), "ambiguous": Noted(1, "backup 2")},
    )
    assert list(output.summary_lines(summary, Target("f1", "c1", "gpbackup")))[1:] == [
        "  The listing has 2 full, 1 incremental.",
        "  2 of size 0 [backup 1 and others]",
        "  1 ambiguous [backup 2]",
    ]


def test_a_summary_ends() -> None:
    """However many reasons a listing makes up, the summary stays readable."""
    skipped = {f"status unknown: '{n}'": 1 for n in range(1000)}
    summary = Summary(False, 1000, 0, 0, 0, Pruned(0, None), 0, skipped)
    lines = list(output.summary_lines(summary, Target("f1", "c1", "gpbackup")))
    assert len(lines) < 25
    assert "  and so on, 980 more lines" in lines
