"""gpbackup's history, row by row; the cases are those that its users met."""

import contextlib
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.entry import Entry, Skipped
from service.errors import CommandError, InvalidEntry, InvalidIdPrefix, InvalidListing, InvalidTimeZone
from service.importers import gpbackup
from tests.fuzz.targets import CORPUS
from tests.support.repository import ROOT

_SAMPLE = ROOT / "samples" / "gpbackup_history.db"
_NO_SIZE = "of size 0: gpbackup records none (--backup-dir adds up the files of local backups)"

# As gpbackup fills a row: it binds every column.
_ROW: dict[str, Any] = {
    "timestamp": "20261104010002",
    "backup_dir": "/backups/gp",
    "backup_version": "1.30.5",
    "compressed": 1,
    "compression_type": "gzip",
    "database_name": "demo",
    "database_version": "6.27.1 build dev",
    "segment_count": 8,
    "data_only": 0,
    "date_deleted": "",
    "exclude_schema_filtered": 0,
    "exclude_table_filtered": 0,
    "include_schema_filtered": 0,
    "include_table_filtered": 0,
    "incremental": 0,
    "leaf_partition_data": 0,
    "metadata_only": 0,
    "plugin": "",
    "plugin_version": "",
    "single_data_file": 0,
    "end_time": "20261104034117",
    "without_globals": 0,
    "with_statistics": 0,
    "status": "Success",
}


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        yield connection


def _schema() -> list[str]:
    with _open(_SAMPLE) as sample:
        return [sql for (sql,) in sample.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")]


def _insert(connection: sqlite3.Connection, row: dict[str, Any]) -> None:
    connection.execute(f"INSERT INTO backups ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values()))


def _write(path: Path, *rows: dict[str, Any]) -> Path:
    """A history in gpbackup's own schema; what a row does not say is as in `_ROW`."""
    with _open(path) as connection:
        for statement in _schema():
            connection.execute(statement)
        for row in rows:
            _insert(connection, _ROW | row)
    return path


@pytest.fixture(name="history")
def _history(tmp_path: Path) -> Path:
    return tmp_path / "gpbackup_history.db"


def _read(history: Path, *, timezone: str = "Europe/Berlin", **options: Any) -> list[Entry | Skipped]:
    return list(gpbackup.read(history, id_prefix="c1", timezone=timezone, **options))


def _only(history: Path, *, timezone: str = "Europe/Berlin", **columns: Any) -> Entry:
    [entry] = _read(_write(history, columns), timezone=timezone)
    assert isinstance(entry, Entry)
    return entry


def _refusal(history: Path, *, timezone: str = "Europe/Berlin", **columns: Any) -> InvalidEntry:
    """A usable row, then this one: all is refused."""
    with pytest.raises(InvalidEntry) as caught:
        _read(_write(history, {"timestamp": "20200101000000", "end_time": "20200101010000"}, columns), timezone=timezone)
    assert "Nothing was imported" in str(caught.value)
    return caught.value


def test_sample() -> None:
    """The sample's fourteen rows: ten backups, of two databases and all kinds, and four that are none."""
    found = _read(_SAMPLE)
    entries = [each for each in found if isinstance(each, Entry)]
    assert [entry.id for entry in entries] == [
        f"c1:{timestamp}"
        for timestamp in (
            *("20251026013000", "20260329013000", "20261101010002", "20261102010001", "20261103010001", "20261104010002"),
            *("20261105010001", "20261105020001", "20261109010001", "20261110010002"),
        )
    ]
    assert Counter(each.reason for each in found if isinstance(each, Skipped)) == {
        "failed": 1,
        "deleted": 1,
        "being deleted": 1,
        "not completed: still running, or ended by a crash": 1,
    }
    kinds = Counter(kind for entry in entries for kind in entry.kinds)
    assert kinds == {"full": 6, "incremental": 2, "metadata-only": 1, "data-only": 1, "filtered": 1}


def test_times_are_of_the_zone(history: Path) -> None:
    """Times are the coordinator's: in Berlin an hour ahead of UTC in winter, in Moscow three."""
    entry = _only(history)
    assert entry.started_at == datetime(2026, 11, 4, 0, 0, 2, tzinfo=UTC)
    assert entry.created_at == datetime(2026, 11, 4, 2, 41, 17, tzinfo=UTC)
    [moscow] = _read(history, timezone="Europe/Moscow")
    assert isinstance(moscow, Entry)
    assert moscow.created_at == datetime(2026, 11, 4, 0, 41, 17, tzinfo=UTC)


@pytest.mark.parametrize("name", ["", "Berlin", "Europe", "../Berlin", "/etc/localtime", "a\0", "\udcff", "+03:00", "x" * 999])
def test_unknown_zones(history: Path, name: str) -> None:
    """What is no zone is refused at once, with an example."""
    with pytest.raises(InvalidTimeZone, match="such as Europe/Berlin"):
        gpbackup.read(_write(history), id_prefix="c1", timezone=name)


@pytest.mark.parametrize("now", [datetime(2026, 11, 25, tzinfo=UTC), datetime(2027, 11, 25, tzinfo=UTC)])
def test_running_and_dead_backups(history: Path, now: datetime) -> None:
    """A backup in progress, of yesterday or of a year ago, is none, though it has an end time."""
    row = {"timestamp": "20261124230001", "end_time": "20261124230019", "status": "In Progress"}
    assert _read(_write(history, row)) == [Skipped("not completed: still running, or ended by a crash")]


def test_failed_and_unknown(history: Path) -> None:
    """A failed backup is none; a status that nobody knows is not taken for success, and is shown."""
    rows = [{"timestamp": f"2026110100000{n}", "status": status} for n, status in enumerate(["Failure", "success", "\x1b[2J", "x" * 999])]
    assert _read(_write(history, *rows))[:3] == [
        Skipped("failed"),
        Skipped("status unknown: 'success'"),
        Skipped("status unknown: '\\x1b[2J'"),
    ]


@pytest.mark.parametrize("status", ["", None])
def test_no_status_is_success(history: Path, status: str | None) -> None:
    """gpbackup before 1.19.0 recorded successes only, without a status; its end time is real from 1.13.0 on."""
    entry = _only(history, status=status, backup_version="1.18.1")
    assert (entry.created_at - entry.started_at, entry.warnings) == (timedelta(hours=2, minutes=41, seconds=15), (_NO_SIZE,))


def _ambiguous(entry: Entry) -> bool:
    return any(warning.startswith("ambiguous: ") for warning in entry.warnings)


@pytest.mark.parametrize(
    ("start", "end", "started_at", "minutes", "ambiguous"),
    [
        ("20261025010000", "20261025013000", "23:00", 30, False),  # before the change
        ("20261025013000", "20261025030000", "23:30", 150, False),  # over all of it
        ("20261025013000", "20261025023000", "23:30", 60, True),  # an end that the clock showed twice: 60 or 120 minutes
        ("20261025023000", "20261025031500", "00:30", 105, True),  # a start that it showed twice: 105 or 45 minutes
        ("20261025021000", "20261025025000", "00:10", 40, True),  # both
        ("20261025025000", "20261025021000", "00:50", 20, False),  # only one reading does not end before it starts
        ("20261025023000", "20261025023000", "00:30", 0, True),
    ],
)
def test_repeated_hour(history: Path, start: str, end: str, started_at: str, minutes: int, ambiguous: bool) -> None:
    """Where a clock that is set back allows one consistent reading alone, it is taken; else the earliest completion, and it is said."""
    entry = _only(history, timestamp=start, end_time=end)
    assert f"{entry.started_at:%H:%M}" == started_at
    assert entry.created_at - entry.started_at == timedelta(minutes=minutes)
    assert _ambiguous(entry) is ambiguous
    assert _read(history) == [entry]


@pytest.mark.parametrize(
    "columns",
    [
        {"timestamp": "20260329021500", "end_time": "20260329031500"},
        {"timestamp": "20260329015900", "end_time": "20260329020000"},
        {"timestamp": "20260329021500", "end_time": "20260329031500", "status": "Failure"},
        {"timestamp": "20260329021500", "end_time": "20260329031500", "date_deleted": "20260501000000"},
    ],
)
def test_skipped_hour(history: Path, columns: dict[str, Any]) -> None:
    """A time that no clock of the zone has shown proves the zone wrong, also in a row that is no backup; in another zone it is one."""
    assert "does not exist in Europe/Berlin: is the zone right?" in _refusal(history, **columns).reason
    assert len(_read(history, timezone="Europe/Moscow")) == 2


_ZONES = ["Europe/Berlin", "Europe/Moscow", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kolkata", "Pacific/Apia"]
_START = st.integers(1_400_000_000, 1_900_000_000)


@given(st.sampled_from(_ZONES), _START | st.integers(-20_000, 20_000).map(lambda s: 1_792_890_000 + s), st.integers(0, 20_000))
def test_every_real_backup_is_readable(zone: str, start: int, seconds: int) -> None:
    """What a coordinator's clock showed is never refused; it is exact, or said to be ambiguous and never later than it was."""
    started_at, created_at = (datetime.fromtimestamp(time, UTC) for time in (start, start + seconds))
    times = {"timestamp": started_at, "end_time": created_at}
    shown = {column: f"{time.astimezone(ZoneInfo(zone)):%Y%m%d%H%M%S}" for column, time in times.items()}
    entry = gpbackup._Reader("c1", ZoneInfo(zone), None).entry(_ROW | shown)
    assert isinstance(entry, Entry)
    if _ambiguous(entry):
        assert timedelta(0) <= entry.created_at - entry.started_at
        assert abs(entry.created_at - created_at) <= timedelta(hours=1)
        assert entry.created_at <= created_at
    else:
        assert (entry.started_at, entry.created_at) == (started_at, created_at)


@pytest.mark.parametrize("version", ["1.29.0", "1.29.1", "1.29.1+dev.3.gabc1234"])
def test_preliminary_end(history: Path, version: str) -> None:
    """gpbackup 1.29.0 and 1.29.1 never replaced the end time of the start: such a backup is imported, with a warning."""
    entry = _only(history, backup_version=version, timestamp="20230701010002", end_time="20230701010009")
    assert entry.created_at - entry.started_at == timedelta(seconds=7)
    assert entry.warnings[0].startswith("completion preliminary: gpbackup 1.29.0 and 1.29.1")


@pytest.mark.parametrize("version", ["1.28.1", "1.29.2", "1.30.0", "2.0.0", "", None, "main", "1" * 999])
def test_end_of_other_versions(history: Path, version: str | None) -> None:
    """Other versions' end times are taken as they are."""
    assert _only(history, backup_version=version).warnings == (_NO_SIZE,)


@pytest.mark.parametrize("version", ["1.12.1", "1.7.0", "1.0.0-beta.3"])
def test_end_that_is_a_migration(history: Path, version: str) -> None:
    """gpbackup before 1.13.0 had no end times, and got the migration's: such a backup is not the newest of all, and it is said."""
    entry = _only(history, backup_version=version, status="", timestamp="20190301020000", end_time="20240115101500")
    assert entry.created_at == entry.started_at == datetime(2019, 3, 1, 1, tzinfo=UTC)
    assert entry.warnings[0].startswith("completion unknown, the start taken: gpbackup before 1.13.0")


@pytest.mark.parametrize(
    ("deleted", "reason"),
    [
        ("20261115094512", "deleted"),
        ("In progress", "being deleted"),
        ("in progress", "state of deletion unknown: 'in progress'"),
        ("2026", "state of deletion unknown: '2026'"),
    ],
)
def test_deleted(history: Path, deleted: str, reason: str) -> None:
    """What is deleted or being deleted is gone; a state that nobody knows is not taken for there."""
    assert _read(_write(history, {"date_deleted": deleted})) == [Skipped(reason)]


@pytest.mark.parametrize("deleted", ["Plugin Backup Delete Failed", "Local Delete Failed"])
def test_deletion_that_failed(history: Path, deleted: str) -> None:
    """A backup whose deletion failed is still there, by gpbackman's own rule; it is said, each kind apart."""
    assert _only(history, date_deleted=deleted).warnings == (f"still there: deletion failed ({deleted})", _NO_SIZE)


def test_null_is_empty(history: Path) -> None:
    """NULL, which other tools may write, counts as empty."""
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
        ({"end_time": "20261104010001"}, "end_time"),
        ({"end_time": "99991231235959"}, "end_time"),
        ({"status": b"Success"}, "status"),
    ],
)
def test_bad_values(history: Path, columns: dict[str, Any], field: str) -> None:
    """What cannot be a backup's stops the import, and names row, field and reason in one line."""
    refusal = _refusal(history, timezone="America/New_York", **columns)
    assert refusal.field == field
    assert str(refusal).isprintable()
    assert len(str(refusal)) < 300


def test_text_that_is_no_utf8(history: Path) -> None:
    """Bytes that are no UTF-8 are shown, and break nothing."""
    _write(history)
    with _open(history) as connection:
        _insert(connection, _ROW | {"status": "x"})
        connection.execute("UPDATE backups SET status = CAST(x'ff' AS TEXT)")
    assert _read(history) == [Skipped("status unknown: '\\\\xff'")]


def test_a_history_of_1_28_0(history: Path) -> None:
    """Files that 1.28.0 created have no segment_count; columns that nobody needs do no harm."""
    _write(history, {})
    with _open(history) as connection:
        connection.execute("ALTER TABLE backups DROP COLUMN segment_count")
        connection.execute("ALTER TABLE backups ADD COLUMN later TEXT")
    [entry] = _read(history, backup_dir=history.parent)
    assert isinstance(entry, Entry)
    assert entry.warnings == ("of size 0: gpbackup records none, nor how many segments the files are from",)


def test_prefix(history: Path) -> None:
    """Ids are prefix and timestamp; a prefix that is too long is refused before the file is looked at."""
    [entry] = gpbackup.read(_write(history, {}), id_prefix="x" * 24, timezone="Europe/Berlin")
    assert isinstance(entry, Entry)
    assert entry.id == "x" * 24 + ":20261104010002"
    with pytest.raises(InvalidIdPrefix):
        gpbackup.read(Path("/none"), id_prefix="x" * 25, timezone="Europe/Berlin")


# What is no history


def _make_empty(path: Path) -> None:
    path.touch()


def _make_yaml(path: Path) -> None:
    path.write_text('backupconfigs:\n- backupdir: ""\n  timestamp: "20190301020000"\n')


def _make_text(path: Path) -> None:
    path.write_text("20261104010002 Success\n")


def _make_other_sqlite(path: Path) -> None:
    with _open(path) as connection:
        connection.execute("CREATE TABLE backup (timestamp TEXT)")


def _make_view(path: Path) -> None:
    with _open(path) as connection:
        connection.execute(
            f"CREATE VIEW backups AS WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) "
            f"SELECT {', '.join(f'i AS {column}' for column in _ROW)} FROM n"
        )


def _make_other_table(path: Path) -> None:
    with _open(path) as connection:
        connection.execute("CREATE TABLE backups (timestamp TEXT, end_time TEXT)")


def _make_half(path: Path) -> None:
    shutil.copy(_SAMPLE, path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _make_garbled(path: Path) -> None:
    shutil.copy(_SAMPLE, path)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 20_000)


def _found_by_fuzzing(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        shutil.copy(CORPUS / "gpbackup" / name, path)

    return make


def _make_fat(path: Path) -> None:
    _write(path, {"status": "x" * 2_000_000})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_make_empty, "is empty: no gpbackup has written to it"),
        (_make_text, "no SQLite file: gpbackup's history is gpbackup_history.db"),
        (_make_yaml, "history in YAML, of gpbackup before 1.28.0.*gpbackman history-migrate --history-file .* --history-db "),
        (_make_other_sqlite, "without gpbackup's table `backups`"),
        (_make_view, "without gpbackup's table `backups`"),
        (_make_other_table, "has no column backup_dir, "),
        (_make_half, "damaged, or not whole: copy it again"),
        (_make_garbled, "damaged, or not whole"),
        (_make_fat, "too big"),
        (_found_by_fuzzing("complaint-without-utf8"), "damaged, or not whole"),
        (_found_by_fuzzing("no-memory"), "SQLite needs more than 32 MiB for it, so it may be damaged"),
    ],
)
def test_no_history(history: Path, make: Any, message: str) -> None:
    """What is no history of gpbackup is refused with what it is, and stays as it was."""
    make(history)
    before = history.read_bytes()
    with pytest.raises(InvalidListing, match=message):
        _read(history)
    assert history.read_bytes() == before
    assert list(history.parent.iterdir()) == [history]


def test_what_is_not_there_is_not_created(history: Path) -> None:
    """A path without a file is an error, and stays one; so is a directory."""
    with pytest.raises(CommandError, match="No such file"):
        _read(history)
    assert not history.exists()
    with pytest.raises(InvalidListing, match="is no file"):
        _read(history.parent)


def test_odd_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is a path, whatever a URL would make of its characters; relative ones too."""
    folder = tmp_path / "a?mode=rwc#%41 ж"
    folder.mkdir()
    _write(folder / "h.db", {})
    monkeypatch.chdir(folder)
    assert len(_read(Path("h.db"))) == 1


# Locks


def test_gpbackup_can_write_as_soon_as_it_is_read(history: Path) -> None:
    """The file is closed when `read` returns: a writer that would not wait at all can commit before the entries are taken."""
    entries = gpbackup.read(_write(history, {}), id_prefix="c1", timezone="Europe/Berlin")
    with _open(history) as writer:
        _insert(writer, _ROW | {"timestamp": "20261105010002", "end_time": "20261105020002"})
    assert len(list(entries)) == 1
    assert len(_read(history)) == 2


def test_read_while_gpbackup_writes(history: Path) -> None:
    """A writer's transaction neither hinders a reader nor is hindered, and what is not committed is not read."""
    with _open(_write(history, {})) as writer:
        writer.execute("BEGIN IMMEDIATE")
        _insert(writer, _ROW | {"timestamp": "20261105010002", "end_time": "20261105020002"})
        assert len(_read(history)) == 1
        writer.execute("COMMIT")
    assert len(_read(history)) == 2


def test_a_reader_waits_for_a_commit(history: Path) -> None:
    """While gpbackup commits, the reader waits."""
    with _open(_write(history, {})) as writer:
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
    """A lock that is not let go of is a clear error."""
    monkeypatch.setattr(gpbackup, "_LOCK_TIMEOUT_S", 0)
    with _open(_write(history, {})) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InvalidListing, match="gpbackup is writing to it and did not finish: try again"):
            _read(history)


def test_a_history_that_takes_long(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that would hold up gpbackup's commit until it fails gives up first, and says what to do."""
    _write(history, *({"timestamp": f"20200101{n:06}"} for n in range(60)))
    monkeypatch.setattr(gpbackup, "_INSTRUCTIONS", 10)
    monkeypatch.setattr(gpbackup, "_READ_WITHIN_S", 0.0)
    with pytest.raises(InvalidListing, match="reading it took longer than 0 s, .* import a copy of it"):
        _read(history)


def test_half_a_transaction_is_not_read(history: Path, tmp_path: Path) -> None:
    """What a crash leaves, a file with half a transaction and its journal, is refused rather than read, and left as it is."""
    crashed = tmp_path / "crashed.db"
    with _open(_write(history, *({"timestamp": f"20200101{n:06}", "end_time": "20270101000000"} for n in range(60)))) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        writer.execute("UPDATE backups SET backup_dir = ?, status = 'Failure'", ("x" * 5000,))
        shutil.copy(history, crashed)
        shutil.copy(f"{history}-journal", f"{crashed}-journal")
    before = crashed.read_bytes()
    with pytest.raises(InvalidListing, match="has left its journal beside it"):
        _read(crashed)
    assert crashed.read_bytes() == before


# Sizes


def _fill(directory: Path, files: dict[str, int], timestamp: str = "20261104010002") -> None:
    place = directory / "backups" / timestamp[:8] / timestamp
    place.mkdir(parents=True)
    for name, size in files.items():
        place.joinpath(name).write_bytes(b"x" * size)


def _sized(history: Path, place: Path, **columns: Any) -> tuple[int, tuple[str, ...]]:
    [entry] = _read(_write(history, columns), backup_dir=place)
    assert isinstance(entry, Entry)
    return entry.size, entry.warnings


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    place = tmp_path / "b"
    place.mkdir()
    return place


def test_all_directories(history: Path, place: Path) -> None:
    """Where every content's directory is there, the files are added up; other backups, other clusters' and links are not."""
    for content in range(-1, 8):
        _fill(place / f"gpseg{content}", {"a": 10, "b": 1})
        _fill(place / f"gpseg{content}", {"a": 1000}, "20261105010002")
    _fill(place / "gpseg8", {"a": 1000})
    _fill(place / "gpseg01", {"a": 1000})
    _fill(place / "other0", {"a": 1000})
    (place / "gpseg0/backups/20261104/20261104010002/link").symlink_to(_SAMPLE)
    assert _sized(history, place) == (99, ())


@pytest.mark.parametrize("contents", [[-1, 0, 1], [*range(-1, 7)], [-1, *range(1, 8)]])
def test_a_part_of_the_directories(history: Path, place: Path, contents: list[int]) -> None:
    """A part of nine directories, be it all but one, is no size: 0, and how many there are."""
    for content in contents:
        _fill(place / f"gpseg{content}", {"a": 10})
    assert _sized(history, place) == (0, (f"of size 0: {len(contents)} of 9 directories reachable",))


def test_no_directory(history: Path, place: Path) -> None:
    """Nothing, the primaries without the coordinator, and two coordinators are no size."""
    assert _sized(history, place) == (0, ("of size 0: 0 of 9 directories reachable",))
    history.unlink()
    for content in range(8):
        _fill(place / f"gpseg{content}", {"a": 10})
    assert _sized(history, place) == (0, ("of size 0: 8 of 9 directories reachable",))
    history.unlink()
    for name in ("gpseg-1", "other-1"):
        _fill(place / name, {"a": 10})
    assert _sized(history, place) == (0, (f"of size 0: several clusters have a backup of this time in {place}",))


def test_one_directory(history: Path, place: Path) -> None:
    """With --single-backup-dir, all contents share one directory, if it is shared: every primary has a file there."""
    ts = "20261104010002"
    files = {f"gpbackup_{ts}_toc.yaml": 5, f"gpbackup_{ts}_metadata.sql": 5}
    _fill(place, files | {f"gpbackup_{segment}_{ts}_16384.gz": 10 for segment in range(8)})
    assert _sized(history, place) == (90, ())


def test_one_directory_of_many(history: Path, place: Path) -> None:
    """A host's own directory of that name has some segments' files only, which is no size; a metadata-only backup has none."""
    ts = "20261104010002"
    _fill(place, {f"gpbackup_{ts}_toc.yaml": 5, f"gpbackup_0_{ts}": 5, f"gpbackup_1_{ts}_1.gz": 5, f"gpbackup_9_{ts}": 5})
    assert _sized(history, place) == (0, ("of size 0: files of 2 of 8 segments reachable",))
    history.unlink()
    assert _sized(history, place, metadata_only=1) == (20, ())


@pytest.mark.parametrize(
    ("columns", "warning"),
    [
        ({"plugin": "gpbackup_s3_plugin", "backup_dir": ""}, "and a plugin keeps the files"),
        ({"backup_dir": ""}, "and the files are in the segments' own data directories"),
        ({"segment_count": 0}, "nor how many segments the files are from"),
        ({"segment_count": None}, "nor how many segments the files are from"),
        ({"segment_count": 2**40}, "nor how many segments the files are from"),
        ({"segment_count": "many"}, "nor how many segments the files are from"),
    ],
)
def test_sizes_that_cannot_be_known(history: Path, place: Path, columns: dict[str, Any], warning: str) -> None:
    """Where no local sum can be a size, it is 0, with the reason."""
    size, [found] = _sized(history, place, **columns)
    assert size == 0
    assert warning in found


def test_files_that_cannot_be_read(history: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that goes away while it is read is no reason to fail."""
    shutil.rmtree(place)
    assert _sized(history, place) == (0, ("of size 0: its files cannot be read (No such file or directory)",))
