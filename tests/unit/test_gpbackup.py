"""Rows of gpbackup's history, with cases that its users reported."""

import contextlib
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.entry import (
    ENDS_BEFORE_IT_STARTS,
    EXCLUDED,
    TOO_EARLY,
    Attempt,
    Deleted,
    Entry,
    Listed,
    Selection,
    Skipped,
    Unusable,
)
from service.errors import CommandError, InvalidIdPrefix, InvalidListing, InvalidTimeZone
from service.importers import gpbackup, gpbackup_history
from tests.fuzz.targets import CORPUS
from tests.support.gpbackup_history import ROW, SAMPLE, insert_row, open_history, write_history

_NO_SIZE = "size unknown: gpbackup records none (--backup-dir adds up the files of local backups)"


@pytest.fixture(name="history")
def _history(tmp_path: Path) -> Path:
    return tmp_path / "gpbackup_history.db"


def _read(history: Path, *, timezone: str = "Europe/Berlin", **options: Any) -> list[Listed]:
    return list(gpbackup.read(history, id_prefix="c1", timezone=timezone, **options))


def _only(history: Path, *, timezone: str = "Europe/Berlin", **columns: Any) -> Entry:
    [entry] = _read(write_history(history, columns), timezone=timezone)
    assert isinstance(entry, Entry)
    return entry


def _error(history: Path, *, timezone: str = "Europe/Berlin", **columns: Any) -> Unusable:
    """Return the error of an unusable row that a usable one precedes or follows."""
    found = _read(write_history(history, {"timestamp": "20200101000000", "end_time": "20200101010000"}, columns), timezone=timezone)
    [unusable] = [each for each in found if isinstance(each, Unusable)]
    assert len(found) == 2
    return unusable


def test_sample() -> None:
    """The sample has fourteen rows: ten backups of two databases and all types, two deleted ones and two attempts."""
    found = _read(SAMPLE)
    entries = [each for each in found if isinstance(each, Entry)]
    assert [(each.name, each.database, each.method, each.contents, each.needs) for each in entries] == [
        ("20251026013000", "demo", "base", "everything", ()),
        ("20260329013000", "demo", "base", "everything", ()),
        ("20261101010002", "demo", "base", "everything", ()),
        ("20261102010001", "demo", "incremental", "everything", ("20261101010002",)),
        ("20261103010001", "demo", "incremental", "everything", ("20261101010002", "20261102010001")),
        ("20261104010002", "demo", "base", "metadata only", ()),
        ("20261105010001", "demo", "base", "data only", ()),
        ("20261105020001", "Sales DW", "base", "everything", ()),
        ("20261109010001", "demo", "base", "everything", ()),
        ("20261110010002", "demo", "base", "everything", ()),
    ]
    assert [each.id for each in entries] == [f"c1:{each.name}" for each in entries]
    assert {(each.size, each.permanent) for each in entries} == {(None, None)}
    assert [each for each in found if not isinstance(each, Entry)] == [
        Attempt("20261106010002", "demo", datetime(2026, 11, 6, 0, 0, 2, tzinfo=UTC), "failed"),
        Deleted("20261107010001", "deleted"),
        Deleted("20261108010002", "being deleted"),
        Attempt("20261124230001", "demo", datetime(2026, 11, 24, 22, 0, 1, tzinfo=UTC), "running"),
    ]
    types = Counter(each for entry in entries for each in entry.types)
    assert types == {"full": 6, "incremental": 2, "metadata-only": 1, "data-only": 1, "filtered": 1}


def test_times_are_of_the_zone(history: Path) -> None:
    """Times are the coordinator's local times: an hour ahead of UTC in Berlin in winter, three hours in Moscow."""
    entry = _only(history)
    assert entry.started_at == datetime(2026, 11, 4, 0, 0, 2, tzinfo=UTC)
    assert entry.created_at == datetime(2026, 11, 4, 2, 41, 17, tzinfo=UTC)
    [moscow] = _read(history, timezone="Europe/Moscow")
    assert isinstance(moscow, Entry)
    assert moscow.created_at == datetime(2026, 11, 4, 0, 41, 17, tzinfo=UTC)


@pytest.mark.parametrize("name", ["", "Berlin", "Europe", "../Berlin", "/etc/localtime", "a\0", "\udcff", "+03:00", "x" * 999])
def test_unknown_zones(history: Path, name: str) -> None:
    """A name that is not a time zone is rejected before the file is read, with an example."""
    with pytest.raises(InvalidTimeZone, match="such as Europe/Berlin"):
        gpbackup.read(write_history(history), id_prefix="c1", timezone=name)


def test_running_and_crashed(history: Path) -> None:
    """A run in progress is an attempt, although it has an end time: running if it is the newest of its database, otherwise crashed."""
    running = {"status": "In Progress", "end_time": "20261124230019"}
    rows = [
        running | {"timestamp": "20261124230001"},
        running | {"timestamp": "20261125230001"},
        running | {"timestamp": "20261124230002", "database_name": "other"},
        {"timestamp": "20261125230002", "end_time": "20261125230003", "database_name": "other", "date_deleted": "20261126000000"},
    ]
    found = [each for each in _read(write_history(history, *rows)) if isinstance(each, Attempt)]
    assert [(each.name, each.database, each.state) for each in found] == [
        ("20261124230001", "demo", "crashed"),
        ("20261124230002", "other", "crashed"),
        ("20261125230001", "demo", "running"),
    ]


@pytest.mark.parametrize("status", ["success", "\x1b[2J", "x" * 999])
def test_unknown_status(history: Path, status: str) -> None:
    """A row with an unknown status is unusable, because it may not be a success."""
    error = _error(history, status=status)
    assert (error.field, error.message.isprintable()) == ("status", True)


@pytest.mark.parametrize("columns", [{"timestamp": "20260329021500"}, {"timestamp": "soon"}, {"database_name": ""}])
@pytest.mark.parametrize("status", ["Failure", "In Progress"])
def test_attempts_with_bad_values(history: Path, columns: dict[str, Any], status: str) -> None:
    """A bad value of an attempt neither makes it unusable nor proves the zone wrong."""
    [found] = _read(write_history(history, columns | {"status": status}))
    assert isinstance(found, Attempt | Skipped)


@pytest.mark.parametrize("status", ["", None])
def test_no_status_is_success(history: Path, status: str | None) -> None:
    """A row without a status is a success of gpbackup before 1.19.0. Its end time is valid from 1.13.0 on."""
    entry = _only(history, status=status, backup_version="1.18.1")
    assert (entry.created_at - entry.started_at, entry.warnings) == (timedelta(hours=2, minutes=41, seconds=15), (_NO_SIZE,))


def _ambiguous(entry: Entry) -> bool:
    return any(warning.startswith("ambiguous: ") for warning in entry.warnings)


@pytest.mark.parametrize(
    ("start", "end", "started_at", "minutes", "ambiguous"),
    [
        ("20261025010000", "20261025013000", "23:00", 30, False),  # before the change
        ("20261025013000", "20261025030000", "23:30", 150, False),  # over all of it
        ("20261025013000", "20261025023000", "23:30", 60, True),  # an end time that the clock showed twice: 60 or 120 minutes
        ("20261025023000", "20261025031500", "00:30", 105, True),  # a start that it showed twice: 105 or 45 minutes
        ("20261025021000", "20261025025000", "00:10", 40, True),  # both
        ("20261025025000", "20261025021000", "00:50", 20, False),  # only one interpretation does not end before it starts
        ("20261025023000", "20261025023000", "00:30", 0, True),
    ],
)
def test_repeated_hour(history: Path, start: str, end: str, started_at: str, minutes: int, ambiguous: bool) -> None:
    """In an hour that a clock change repeats, the only consistent times are used, otherwise the earliest completion with a warning."""
    entry = _only(history, timestamp=start, end_time=end)
    assert f"{entry.started_at:%H:%M}" == started_at
    assert entry.created_at - entry.started_at == timedelta(minutes=minutes)
    assert _ambiguous(entry) is ambiguous
    assert _read(history) == [entry]


@pytest.mark.parametrize(
    ("columns", "field", "time"),
    [
        ({"timestamp": "20260329021500", "end_time": "20260329031500"}, "timestamp", "02:15:00"),
        ({"timestamp": "20260329015900", "end_time": "20260329020000"}, "end_time", "02:00:00"),
    ],
)
def test_skipped_hour(history: Path, columns: dict[str, Any], field: str, time: str) -> None:
    """A backup with a time that does not exist in the zone is unusable. Others may be valid, because the host's zone may have changed."""
    write_history(history, {"timestamp": "20200101000000", "end_time": "20200101010000"}, columns)
    name = columns["timestamp"]
    reason = f"2026-03-29 {time} does not exist in Europe/Berlin: if --timezone is wrong, all times of this import are wrong"
    first, second = _read(history)
    assert isinstance(first, Entry)
    assert second == Unusable(name, f"backup {name}", field, reason)
    assert all(isinstance(each, Entry) for each in _read(history, timezone="Europe/Moscow"))
    assert _read(history, selection=Selection(exclude=frozenset({name})))[1] == Skipped(name, EXCLUDED)


@pytest.mark.parametrize("columns", [{"timestamp": "2026-03-29"}, {"status": b"x"}, {"date_deleted": b"x"}, {"status": "odd"}])
def test_excluded_rows(history: Path, columns: dict[str, Any]) -> None:
    """--exclude leaves out any unusable row by the text of its timestamp."""
    write_history(history, {"timestamp": "20261120010000", "end_time": "20261120020000"} | columns)
    [unusable] = _read(history)
    assert isinstance(unusable, Unusable)
    name = columns.get("timestamp", "20261120010000")
    assert _read(history, selection=Selection(exclude=frozenset({name}))) == [Skipped(unusable.name, EXCLUDED)]


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"status": "Failure"}, Attempt("20260329021500", "demo", datetime(2026, 3, 29, 1, 15, tzinfo=UTC), "failed")),
        ({"date_deleted": "20260501000000"}, Deleted("20260329021500", "deleted")),
        ({"date_deleted": "In progress"}, Deleted("20260329021500", "being deleted")),
    ],
)
def test_skipped_hour_of_other_rows(history: Path, columns: dict[str, Any], found: Listed) -> None:
    """A time that does not exist has no effect in a row that is skipped anyway."""
    row = {"timestamp": "20260329021500", "end_time": "20260329031500"}
    assert _read(write_history(history, row | columns)) == [found]


@pytest.mark.parametrize("columns", [{}, {"status": "odd"}, {"database_name": ""}, {"incremental": 1, "data_only": 1}])
def test_too_early(history: Path, columns: dict[str, Any]) -> None:
    """A backup that was completed before --since is skipped, even if its times do not exist in the zone or its values are bad."""
    row = {"timestamp": "20260329021500", "end_time": "20260329021600"}
    since = datetime(2026, 3, 29, 1, 16, 1, tzinfo=UTC)
    assert _read(write_history(history, row | columns), selection=Selection(since)) == [Skipped("20260329021500", TOO_EARLY)]


def test_too_early_in_a_repeated_hour(history: Path) -> None:
    """A backup whose end the clock showed twice is skipped if the earliest possible end, which would be imported, is before --since."""
    write_history(history, {"timestamp": "20261025013000", "end_time": "20261025023000"})  # completed at 00:30 or 01:30 UTC
    since = datetime(2026, 10, 25, 1, tzinfo=UTC)
    assert _read(history, selection=Selection(since)) == [Skipped("20261025013000", TOO_EARLY)]


@pytest.mark.parametrize("status", ["Failure", "In Progress"])
def test_excluded_attempts(history: Path, status: str) -> None:
    """--exclude leaves out an attempt by its timestamp."""
    write_history(history, {"timestamp": "20261120010000", "status": status})
    assert isinstance(_read(history)[0], Attempt)
    assert _read(history, selection=Selection(exclude=frozenset({"20261120010000"}))) == [Skipped("20261120010000", EXCLUDED)]


def test_ends_before_it_starts(history: Path) -> None:
    """A backup that was completed before it started gets a duration of 0, with a warning; its completion is kept."""
    entry = _only(history, timestamp="20261121010002", end_time="20261121010000")
    assert entry.created_at == entry.started_at == datetime(2026, 11, 21, 0, 0, 0, tzinfo=UTC)
    assert ENDS_BEFORE_IT_STARTS in entry.warnings


@pytest.mark.parametrize(
    ("flags", "types", "contents", "method"),
    [
        ({}, ("full",), "everything", "base"),
        ({"incremental": 1}, ("incremental",), "everything", "incremental"),
        ({"data_only": 1}, ("data-only",), "data only", "base"),
        ({"metadata_only": 1}, ("metadata-only",), "metadata only", "base"),
        ({"metadata_only": 1, "incremental": 1}, ("metadata-only",), "metadata only", "incremental"),
        ({"metadata_only": 1, "data_only": 1}, ("metadata-only",), "metadata only", "base"),
        ({"include_table_filtered": 1}, ("full", "filtered"), "filtered", "base"),
        ({"exclude_schema_filtered": 1, "incremental": 1}, ("incremental", "filtered"), "filtered", "incremental"),
        ({"exclude_table_filtered": 1, "data_only": 1}, ("data-only", "filtered"), "data only", "base"),
    ],
)
def test_types(history: Path, flags: dict[str, Any], types: tuple[str, ...], contents: str, method: str) -> None:
    """The type, contents and method of a backup follow its flags as gpbackman reads them."""
    entry = _only(history, **flags)
    assert (entry.types, entry.contents, entry.method) == (types, contents, method)


@pytest.mark.parametrize("flags", [{"incremental": 1, "data_only": 1}, {"incremental": 1, "data_only": 1, "metadata_only": 1}])
def test_contradictory_flags(history: Path, flags: dict[str, Any]) -> None:
    """A row with flags that gpbackman rejects is unusable."""
    assert _error(history, **flags).field == "incremental"


@pytest.mark.parametrize(
    ("recorded", "database"),
    [("demo", "demo"), ('"Sales DW"', "Sales DW"), ('"a""b"', 'a"b'), ('"', '"'), ("база", "база"), ("x" * 255, "x" * 255)],
)
def test_databases(history: Path, recorded: str, database: str) -> None:
    """The database's name is the one that quote_ident has quoted."""
    assert _only(history, database_name=recorded).database == database


@pytest.mark.parametrize("recorded", ["", None, '""', "a\0b", "x" * 256, "ж" * 128, b"demo"])
def test_bad_databases(history: Path, recorded: object) -> None:
    """A row without the name of a database is unusable."""
    assert _error(history, database_name=recorded).field == "database_name"


def test_needs(history: Path) -> None:
    """A backup needs the backups of its restore plan without itself; a metadata-only one needs none, and a missing plan is empty."""
    rows = [{"timestamp": f"2026110{n}010002", "end_time": f"2026110{n}020002", "incremental": int(n > 1)} for n in (1, 2, 3, 4)]
    rows[3] |= {"metadata_only": 1, "incremental": 0}
    plans = [(2, 1), (2, 2), (4, 4), (4, 1), (2, 1)]
    write_history(history, *rows, plans=[(f"2026110{a}010002", f"2026110{b}010002") for a, b in plans])
    assert [each.needs for each in _read(history) if isinstance(each, Entry)] == [(), ("20261101010002",), (), ()]


def test_a_history_without_plans(history: Path) -> None:
    """A file without the table `restore_plans` is read; a view of this name is not."""
    write_history(history, {"incremental": 1})
    with open_history(history) as connection:
        connection.execute("DROP TABLE restore_plans")
        connection.execute("CREATE VIEW restore_plans AS SELECT '20261104010002' AS timestamp, '20261103010002' AS restore_plan_timestamp")
    [entry] = _read(history)
    assert isinstance(entry, Entry)
    assert entry.needs == ()


@pytest.mark.parametrize("plan", [["x"], ["20261103010002\n"], [f"{20200101000000 + n}" for n in range(1001)]])
def test_bad_plans(history: Path, plan: list[str]) -> None:
    """A plan with a value that is not a timestamp, or with more than 1,000 of them, makes the row unusable."""
    write_history(history, {}, plans=[("20261104010002", needed) for needed in plan])
    [found] = _read(history)
    assert isinstance(found, Unusable)
    assert found.field == "restore_plans"


_ZONES = ["Europe/Berlin", "Europe/Moscow", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kolkata", "Pacific/Apia"]
_START = st.integers(1_400_000_000, 1_900_000_000)


@given(st.sampled_from(_ZONES), _START | st.integers(-20_000, 20_000).map(lambda s: 1_792_890_000 + s), st.integers(0, 20_000))
def test_every_real_backup_is_readable(zone: str, start: int, seconds: int) -> None:
    """A time that a coordinator's clock showed is accepted. It is exact, or marked as ambiguous and not later than the actual time."""
    started_at, created_at = (datetime.fromtimestamp(time, UTC) for time in (start, start + seconds))
    times = {"timestamp": started_at, "end_time": created_at}
    shown = {column: f"{time.astimezone(ZoneInfo(zone)):%Y%m%d%H%M%S}" for column, time in times.items()}
    entry = gpbackup._Reader("c1", ZoneInfo(zone), None, Selection(), plans={}, newest={}).listed(ROW | shown)
    assert isinstance(entry, Entry)
    if _ambiguous(entry):
        assert timedelta(0) <= entry.created_at - entry.started_at
        assert abs(entry.created_at - created_at) <= timedelta(hours=1)
        assert entry.created_at <= created_at
    else:
        assert (entry.started_at, entry.created_at) == (started_at, created_at)


@pytest.mark.parametrize("version", ["1.29.0", "1.29.1", "1.29.1+dev.3.gabc1234"])
def test_preliminary_end(history: Path, version: str) -> None:
    """A backup of gpbackup 1.29.0 or 1.29.1, which recorded an end time near the start, is imported with a warning."""
    entry = _only(history, backup_version=version, timestamp="20230701010002", end_time="20230701010009")
    assert entry.created_at - entry.started_at == timedelta(seconds=7)
    assert entry.warnings[0].startswith("completion preliminary: gpbackup 1.29.0 and 1.29.1")


@pytest.mark.parametrize("version", ["1.28.1", "1.29.2", "1.30.0", "2.0.0", "", None, "main", "1" * 999])
def test_end_of_other_versions(history: Path, version: str | None) -> None:
    """The end times of other versions are used without a warning."""
    assert _only(history, backup_version=version).warnings == (_NO_SIZE,)


@pytest.mark.parametrize("version", ["1.12.1", "1.7.0", "1.0.0-beta.3"])
def test_end_that_is_a_migration(history: Path, version: str) -> None:
    """A backup of gpbackup before 1.13.0, whose recorded end is that of a migration, is taken as completed at its start, with a warning."""
    entry = _only(history, backup_version=version, status="", timestamp="20190301020000", end_time="20240115101500")
    assert entry.created_at == entry.started_at == datetime(2019, 3, 1, 1, tzinfo=UTC)
    assert entry.warnings[0].startswith("completion unknown, start taken: gpbackup before 1.13.0")


@pytest.mark.parametrize(("deleted", "reason"), [("20261115094512", "deleted"), ("In progress", "being deleted")])
def test_deleted(history: Path, deleted: str, reason: str) -> None:
    """A backup that is deleted or being deleted is reported as such."""
    assert _read(write_history(history, {"date_deleted": deleted})) == [Deleted("20261104010002", reason)]


@pytest.mark.parametrize("deleted", ["in progress", "2026"])
def test_unknown_deletion(history: Path, deleted: str) -> None:
    """A row with an unknown state of deletion is unusable, because the backup may not exist."""
    error = _error(history, date_deleted=deleted)
    assert (error.field, error.reason) == ("date_deleted", f"{deleted!r} is unknown")


@pytest.mark.parametrize("deleted", ["Plugin Backup Delete Failed", "Local Delete Failed"])
def test_deletion_that_failed(history: Path, deleted: str) -> None:
    """A backup whose deletion failed still exists, as in gpbackman, and is imported with a warning for each kind of failure."""
    assert _only(history, date_deleted=deleted).warnings == (f"still present: deletion failed ({deleted})", _NO_SIZE)


def test_null_is_empty(history: Path) -> None:
    """NULL, which other tools may write, is read as empty."""
    assert _only(history, date_deleted=None, status=None, plugin=None, backup_dir=None).warnings == (_NO_SIZE,)


_BAD_TIMES = [
    *("", "2026", "20261104010002 ", "20261304010002", "20260230000000", "20261104240000", "20261104010060"),
    *("\u0662\u0660261104010002", "../../etc/pass", b"20261104010002"),
]


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        *(({"timestamp": bad}, "timestamp") for bad in _BAD_TIMES),
        ({"timestamp": "00010101000000"}, "timestamp"),
        ({"timestamp": "19690101000000"}, "timestamp"),
        *(({"end_time": bad}, "end_time") for bad in ("", None, "soon", "20261104", b"\xff")),
        ({"end_time": "99991231235959"}, "end_time"),
        ({"status": b"Success"}, "status"),
    ],
)
def test_bad_values(history: Path, columns: dict[str, Any], field: str) -> None:
    """A value that a backup cannot have makes the row unusable; the error names row and field in one printable line."""
    error = _error(history, timezone="America/New_York", **columns)
    assert error.field == field
    assert error.message.isprintable()
    assert len(error.message) < 300


def test_text_that_is_not_utf8(history: Path) -> None:
    """Bytes that are not UTF-8 are quoted in the error."""
    write_history(history)
    with open_history(history) as connection:
        insert_row(connection, ROW | {"status": "x"})
        connection.execute("UPDATE backups SET status = CAST(x'ff' AS TEXT)")
    [found] = _read(history)
    assert isinstance(found, Unusable)
    assert found.reason == "'\\\\xff' is unknown"


def test_a_history_of_1_28_0(history: Path) -> None:
    """A file that 1.28.0 created, without segment_count, and a file with unknown columns are read."""
    write_history(history, {})
    with open_history(history) as connection:
        connection.execute("ALTER TABLE backups DROP COLUMN segment_count")
        connection.execute("ALTER TABLE backups ADD COLUMN later TEXT")
    [entry] = _read(history, backup_dir=history.parent)
    assert isinstance(entry, Entry)
    assert entry.warnings == ("size unknown: gpbackup records none, nor the number of segments",)


def test_prefix(history: Path) -> None:
    """An id is prefix and timestamp; a prefix that is too long is rejected before the file is read."""
    [entry] = gpbackup.read(write_history(history, {}), id_prefix="x" * 24, timezone="Europe/Berlin")
    assert isinstance(entry, Entry)
    assert entry.id == "x" * 24 + ":20261104010002"
    with pytest.raises(InvalidIdPrefix):
        gpbackup.read(Path("/none"), id_prefix="x" * 25, timezone="Europe/Berlin")


# Other files


def _make_empty(path: Path) -> None:
    path.touch()


def _make_yaml(path: Path) -> None:
    path.write_text('backupconfigs:\n- backupdir: ""\n  timestamp: "20190301020000"\n')


def _make_text(path: Path) -> None:
    path.write_text("20261104010002 Success\n")


def _make_other_sqlite(path: Path) -> None:
    with open_history(path) as connection:
        connection.execute("CREATE TABLE backup (timestamp TEXT)")


def _make_view(path: Path) -> None:
    with open_history(path) as connection:
        connection.execute(
            f"CREATE VIEW backups AS WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) "
            f"SELECT {', '.join(f'i AS {column}' for column in ROW)} FROM n"
        )


def _make_other_table(path: Path) -> None:
    with open_history(path) as connection:
        connection.execute("CREATE TABLE backups (timestamp TEXT, end_time TEXT)")


def _make_truncated(path: Path) -> None:
    shutil.copy(SAMPLE, path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _make_garbled(path: Path) -> None:
    shutil.copy(SAMPLE, path)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 20_000)


def _make_too_many_cells(path: Path) -> None:
    """Let the header of the table's page count 16 rows, of which 15 do not exist: SQLite would read other bytes as rows."""
    with open_history(write_history(path, {})) as connection:
        [(page, size)] = connection.execute("SELECT rootpage, page_size FROM sqlite_schema, pragma_page_size WHERE name = 'backups'")
    with path.open("r+b") as file:
        file.seek((page - 1) * size + 3)
        file.write((16).to_bytes(2))


def _found_by_fuzzing(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        shutil.copy(CORPUS / "gpbackup" / name, path)

    return make


def _make_long_value(path: Path) -> None:
    write_history(path, {"status": "x" * 2_000_000})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_make_empty, "is empty: no gpbackup has written to it"),
        (_make_text, "not a SQLite file: gpbackup's history is gpbackup_history.db"),
        (_make_yaml, "history in YAML, of gpbackup before 1.28.0.*gpbackman history-migrate --history-file .* --history-db "),
        (_make_other_sqlite, "without gpbackup's table `backups`"),
        (_make_view, "without gpbackup's table `backups`"),
        (_make_other_table, "has no column backup_dir, "),
        (_make_truncated, "damaged or incomplete: copy it again"),
        (_make_garbled, "damaged or incomplete"),
        (_make_too_many_cells, "damaged or incomplete"),
        (_make_long_value, "too big"),
        (_found_by_fuzzing("error-without-utf8"), "damaged or incomplete"),
        (_found_by_fuzzing("no-memory"), "SQLite needs more than 32 MiB for the file, so it may be damaged"),
    ],
)
def test_other_files(history: Path, make: Any, message: str) -> None:
    """A file that is not gpbackup's history is rejected with a description of it, and is not changed."""
    make(history)
    before = history.read_bytes()
    with pytest.raises(InvalidListing, match=message):
        _read(history)
    assert history.read_bytes() == before
    assert list(history.parent.iterdir()) == [history]


def test_functions_of_the_schema(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generated column cannot call a function that SQLite does not declare harmless."""
    called: list[bool] = []
    with open_history(write_history(history, {})) as connection:
        connection.create_function("record", 0, bool, deterministic=True)
        connection.execute("DROP TABLE restore_plans")
        connection.execute("CREATE TABLE restore_plans (timestamp TEXT, restore_plan_timestamp TEXT AS (record()))")
        connection.execute("INSERT INTO restore_plans VALUES ('20261104010002')")
    opened = gpbackup_history._opened

    def with_function(path: Path, *, timeout_s: float) -> sqlite3.Connection:
        connection = opened(path, timeout_s=timeout_s)
        connection.create_function("record", 0, lambda: called.append(True), deterministic=True)
        return connection

    monkeypatch.setattr(gpbackup_history, "_opened", with_function)
    with pytest.raises(InvalidListing, match="damaged or incomplete"):
        _read(history)
    assert called == []


def test_absent_file_is_not_created(history: Path) -> None:
    """A path without a file is an error, and no file is created; a directory is an error."""
    with pytest.raises(CommandError, match="No such file"):
        _read(history)
    assert not history.exists()
    with pytest.raises(InvalidListing, match="is not a file"):
        _read(history.parent)


def test_paths_with_special_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with special characters of URLs is opened unchanged, even if it is relative."""
    folder = tmp_path / "a?mode=rwc#%41 ж"
    folder.mkdir()
    write_history(folder / "h.db", {})
    monkeypatch.chdir(folder)
    assert len(_read(Path("h.db"))) == 1


# Locks


def test_gpbackup_can_write_as_soon_as_it_is_read(history: Path) -> None:
    """The file is closed when `read` returns: a writer that does not wait can commit before the entries are taken."""
    entries = gpbackup.read(write_history(history, {}), id_prefix="c1", timezone="Europe/Berlin")
    with open_history(history) as writer:
        insert_row(writer, ROW | {"timestamp": "20261105010002", "end_time": "20261105020002"})
    assert len(list(entries)) == 1
    assert len(_read(history)) == 2


def test_read_while_gpbackup_writes(history: Path) -> None:
    """A reader and the open transaction of a writer do not block each other, and uncommitted rows are not read."""
    with open_history(write_history(history, {})) as writer:
        writer.execute("BEGIN IMMEDIATE")
        insert_row(writer, ROW | {"timestamp": "20261105010002", "end_time": "20261105020002"})
        assert len(_read(history)) == 1
        writer.execute("COMMIT")
    assert len(_read(history)) == 2


def test_a_reader_waits_for_a_commit(history: Path) -> None:
    """The reader waits while gpbackup commits."""
    with open_history(write_history(history, {})) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        found: list[Any] = []
        reader = threading.Thread(target=lambda: found.extend(_read(history)))
        reader.start()
        reader.join(0.2)
        assert reader.is_alive()
        writer.execute("COMMIT")
        reader.join(20)
    assert len(found) == 1


def test_a_writer_that_does_not_end(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is not released is a clear error."""
    monkeypatch.setattr(gpbackup_history, "_LOCK_TIMEOUT_S", 0)
    with open_history(write_history(history, {})) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InvalidListing, match="gpbackup is writing to the file and did not finish: try again"):
            _read(history)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("_CPU_LIMIT_S", "reading the file took more than 0 s of CPU time: remove old rows from a copy"),
        ("_TIME_LIMIT_S", "reading the file took longer than 0 s: import a copy"),
    ],
)
def test_a_history_that_takes_long(history: Path, monkeypatch: pytest.MonkeyPatch, limit: str, message: str) -> None:
    """Reading stops at the limits of CPU time and of time."""
    write_history(history, *({"timestamp": f"20200101{n:06}"} for n in range(60)))
    monkeypatch.setattr(gpbackup_history, "_INSTRUCTIONS", 10)
    monkeypatch.setattr(gpbackup_history, limit, 0.0)
    with pytest.raises(InvalidListing, match=message):
        _read(history)


def test_memory_of_plans(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore plans count towards the limit of memory."""
    monkeypatch.setattr(gpbackup_history, "_ROWS_MEMORY_MAX", 10_000)
    write_history(history, {}, plans=((f"{number}", f"{number}") for number in range(30)))
    with pytest.raises(InvalidListing, match="its rows take more than"):
        _read(history)


def _slow_reading(monkeypatch: pytest.MonkeyPatch, on_check: Callable[[], None]) -> None:
    """Check limits often, check for writers immediately, and call a function before each check."""
    check = gpbackup_history._ReadingLimit.check

    def called(limit: gpbackup_history._ReadingLimit) -> bool:
        on_check()
        return check(limit)

    monkeypatch.setattr(gpbackup_history, "_INSTRUCTIONS", 100)
    monkeypatch.setattr(gpbackup_history, "_WRITER_TIMEOUT_S", 0.0)
    monkeypatch.setattr(gpbackup_history, "_WRITER_CHECK_S", 0.0)
    monkeypatch.setattr(gpbackup_history._ReadingLimit, "check", called)


def _write(history: Path) -> None:
    """Write as gpbackup does, and wait up to 20 s for readers."""
    with contextlib.closing(sqlite3.connect(history, timeout=20, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE backups SET status = 'Failure'")
        writer.execute("COMMIT")


def _wait_until_busy(history: Path) -> None:
    """Wait until a writer admits no new reader."""
    for _ in range(1000):
        with open_history(history) as probe:
            try:
                probe.execute("SELECT 1 FROM backups").fetchone()
            except sqlite3.OperationalError:
                return
        time.sleep(0.01)
    raise TimeoutError("no writer has waited for 10 s")


def test_a_gpbackup_that_waits(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops if a gpbackup waits to commit, and the commit succeeds."""
    write_history(history, *({"timestamp": f"20200101{n:06}"} for n in range(60)))
    gpbackup_run = threading.Thread(target=_write, args=(history,))

    def start_commit() -> None:
        if gpbackup_run.ident is None:
            gpbackup_run.start()
            _wait_until_busy(history)

    _slow_reading(monkeypatch, start_commit)
    with pytest.raises(
        InvalidListing, match="reading was stopped after . s, because a gpbackup waits to write: try again, or import a copy"
    ):
        _read(history)
    gpbackup_run.join(20)
    with open_history(history) as connection:
        assert connection.execute("SELECT DISTINCT status FROM backups").fetchall() == [("Failure",)]


def test_a_gpbackup_that_does_not_commit_yet(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading continues while a gpbackup has uncommitted changes, as long as it does not wait to commit."""
    write_history(history, *({"timestamp": f"20200101{n:06}"} for n in range(60)))
    _slow_reading(monkeypatch, lambda: None)
    with open_history(history) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE backups SET status = 'Failure'")
        assert len(gpbackup_history.read_history(history).rows) == 60


def test_half_a_transaction_is_not_read(history: Path, tmp_path: Path) -> None:
    """A file with half a transaction and its journal, as a crash leaves them, is rejected and not changed."""
    crashed = tmp_path / "crashed.db"
    rows = [{"timestamp": f"20200101{n:06}", "end_time": "20270101000000"} for n in range(60)]
    with open_history(write_history(history, *rows)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        writer.execute("UPDATE backups SET backup_dir = ?, status = 'Failure'", ("x" * 5000,))
        shutil.copy(history, crashed)
        shutil.copy(f"{history}-journal", f"{crashed}-journal")
    before = crashed.read_bytes()
    with pytest.raises(InvalidListing, match="has left its journal next to the file"):
        _read(crashed)
    assert crashed.read_bytes() == before


# Sizes


def _fill(directory: Path, files: dict[str, int], timestamp: str = "20261104010002") -> None:
    place = directory / "backups" / timestamp[:8] / timestamp
    place.mkdir(parents=True)
    for name, size in files.items():
        place.joinpath(name).write_bytes(b"x" * size)


def _sized(history: Path, place: Path, **columns: Any) -> tuple[int | None, tuple[str, ...]]:
    [entry] = _read(write_history(history, columns), backup_dir=place)
    assert isinstance(entry, Entry)
    return entry.size, entry.warnings


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    place = tmp_path / "b"
    place.mkdir()
    return place


def test_all_directories(history: Path, place: Path) -> None:
    """If the directories of all contents exist, the size is the sum of their files, without other backups, other clusters and links."""
    for content in range(-1, 8):
        _fill(place / f"gpseg{content}", {"a": 10, "b": 1})
        _fill(place / f"gpseg{content}", {"a": 1000}, "20261105010002")
    _fill(place / "gpseg8", {"a": 1000})
    _fill(place / "gpseg01", {"a": 1000})
    _fill(place / "other0", {"a": 1000})
    (place / "gpseg0/backups/20261104/20261104010002/link").symlink_to(SAMPLE)
    assert _sized(history, place) == (99, ())


@pytest.mark.parametrize("contents", [[-1, 0, 1], [*range(-1, 7)], [-1, *range(1, 8)]])
def test_a_part_of_the_directories(history: Path, place: Path, contents: list[int]) -> None:
    """The size is unknown if a part of the nine directories exists; the warning counts them."""
    for content in contents:
        _fill(place / f"gpseg{content}", {"a": 10})
    assert _sized(history, place) == (None, (f"size unknown: {len(contents)} of 9 directories reachable",))


def test_no_directory(history: Path, place: Path) -> None:
    """The size is unknown without directories, without the coordinator's, and with those of two coordinators."""
    assert _sized(history, place) == (None, ("size unknown: 0 of 9 directories reachable",))
    history.unlink()
    for content in range(8):
        _fill(place / f"gpseg{content}", {"a": 10})
    assert _sized(history, place) == (None, ("size unknown: 8 of 9 directories reachable",))
    history.unlink()
    for name in ("gpseg-1", "other-1"):
        _fill(place / name, {"a": 10})
    assert _sized(history, place) == (None, (f"size unknown: several clusters have a backup of this time in {place}",))


def test_one_directory(history: Path, place: Path) -> None:
    """A directory of --single-backup-dir has a size if every primary has a file in it."""
    ts = "20261104010002"
    files = {f"gpbackup_{ts}_toc.yaml": 5, f"gpbackup_{ts}_metadata.sql": 5}
    _fill(place, files | {f"gpbackup_{segment}_{ts}_16384.gz": 10 for segment in range(8)})
    assert _sized(history, place) == (90, ())


def test_one_directory_of_many(history: Path, place: Path) -> None:
    """The size of a shared directory with files of some segments is unknown; a metadata-only backup has files of none."""
    ts = "20261104010002"
    _fill(place, {f"gpbackup_{ts}_toc.yaml": 5, f"gpbackup_0_{ts}": 5, f"gpbackup_1_{ts}_1.gz": 5, f"gpbackup_9_{ts}": 5})
    assert _sized(history, place) == (None, ("size unknown: files of 2 of 8 segments reachable",))
    history.unlink()
    assert _sized(history, place, metadata_only=1) == (20, ())


@pytest.mark.parametrize(
    ("columns", "warning"),
    [
        ({"plugin": "gpbackup_s3_plugin", "backup_dir": ""}, "and a plugin stores the files"),
        ({"backup_dir": ""}, "and the files are in the segments' own data directories"),
        ({"segment_count": 0}, "nor the number of segments"),
        ({"segment_count": None}, "nor the number of segments"),
        ({"segment_count": 2**40}, "nor the number of segments"),
        ({"segment_count": "many"}, "nor the number of segments"),
    ],
)
def test_unknown_sizes(history: Path, place: Path, columns: dict[str, Any], warning: str) -> None:
    """The size is unknown, with the reason, if it is not the sum of local files."""
    size, [found] = _sized(history, place, **columns)
    assert size is None
    assert warning in found


def test_files_that_cannot_be_read(history: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is unknown if the files cannot be read."""
    shutil.rmtree(place)
    assert _sized(history, place) == (None, ("size unknown: its files cannot be read (No such file or directory)",))
