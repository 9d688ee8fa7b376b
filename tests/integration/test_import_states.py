"""States that imports derive: chains, missing backups, attempts and freshness. test_reported_cases.py has the cases of operators."""

import contextlib
import io
import json
import sqlite3
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from service.entry import Listed, Selection
from service.errors import ImportRejected, InvalidListing
from service.importers import gpbackup, walg
from service.postgres.database import Database, Limits, open_database
from service.postgres.freshness import Attempt, Freshness, attempts, freshness
from service.postgres.imports.import_backups import Options, Summary, Target, load
from service.postgres.remove_cluster import Cluster, removal_preview, remove_cluster
from tests.support.catalog import Sql
from tests.support.gpbackup_history import ROW, insert_row, open_history, write_history
from tests.support.repository import ROOT

_LIMITS = Limits(1, *(timedelta(seconds=10),) * 3)
_FIRST = datetime(2026, 11, 1, 1, tzinfo=UTC)


@pytest.fixture(name="database")
async def _database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url, _LIMITS) as database:
        yield database


class _Backup(NamedTuple):
    """A backup of WAL-G's listing: its day, and the day of its parent."""

    day: int
    parent: int | None = None
    changes: dict[str, Any] = {}  # noqa: RUF012  # never changed


def _name(day: int) -> str:
    return f"backup_{_FIRST + timedelta(days=day):%Y%m%dT%H%M%SZ}"


def _walg(*backups: _Backup, selection: Selection = Selection()) -> list[Listed]:  # noqa: B008
    items = []
    for day, parent, changes in backups:
        started = _FIRST + timedelta(days=day)
        item = {
            "Name": _name(day),
            "start_time": f"{started:%Y-%m-%dT%H:%M:%SZ}",
            "finish_time": f"{started + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
            "compressed_size": 1000 + day,
            "is_permanent": False,
        }
        if parent is not None:
            item["increment_from"] = _name(parent)
        items.append(item | changes)
    return list(walg.read(io.BytesIO(json.dumps(items).encode()), id_prefix="c1", selection=selection))


async def _load_walg(url: str, listing: Iterable[Listed], **options: Any) -> Summary:
    return await load(url, listing, Target("f1", "c1", "walg"), Options(**options))


async def _load_gpbackup(url: str, history: Path, *, selection: Selection = Selection(), **options: Any) -> Summary:  # noqa: B008
    listing = gpbackup.read(history, id_prefix="c1", timezone="Etc/UTC", selection=selection)
    return await load(url, listing, Target("f1", "c1", "gpbackup"), Options(**options))


async def _chains(sql: Sql) -> dict[str, str]:
    """Return the state of each backup by name: its chain, or missing."""
    rows = await sql.fetch("SELECT name, chain, missing_since FROM backups ORDER BY name")
    return {row["name"]: "missing" if row["missing_since"] else row["chain"] for row in rows}


async def _days(sql: Sql) -> list[str]:
    return [state for _, state in sorted((await _chains(sql)).items())]


# WAL-G

_BAD = {"compressed_size": -1}
_FULL = [_Backup(day) for day in range(10, 30)]  # so that one bad entry is less than a tenth


@pytest.mark.parametrize(
    ("backups", "selection", "states"),
    [
        ([_Backup(0), _Backup(1, 0), _Backup(2, 1)], Selection(), ["complete", "complete", "complete"]),
        ([_Backup(1, 0), _Backup(2, 1), _Backup(3)], Selection(), ["broken", "broken", "complete"]),
        ([_Backup(0), _Backup(2, 1), _Backup(3, 2)], Selection(), ["complete", "broken", "broken"]),
        ([_Backup(0, None, _BAD), _Backup(1, 0), _Backup(2, 1)], Selection(), ["unknown", "unknown"]),
        ([_Backup(0), _Backup(1, 0), _Backup(2, 1)], Selection(_FIRST + timedelta(days=1)), ["unknown", "unknown"]),
        ([_Backup(0), _Backup(1, 0), _Backup(2, 1)], Selection(None, frozenset({_name(1)})), ["complete", "unknown"]),
        ([_Backup(0, 1), _Backup(1, 0), _Backup(2)], Selection(), ["unknown", "unknown", "complete"]),
        ([_Backup(0, 0), _Backup(1, 0)], Selection(), ["unknown", "unknown"]),
        ([_Backup(0), _Backup(0), _Backup(1, 0), _Backup(1, 0), _Backup(2, 1)], Selection(), ["complete", "complete", "complete"]),
    ],
    ids=[
        "whole",
        "deleted base",
        "deleted increment",
        "unusable base",
        "base before --since",
        "excluded parent",
        "cycle",
        "own parent",
        "listed twice",
    ],
)
async def test_chains_of_walg(import_url: str, sql: Sql, backups: list[_Backup], selection: Selection, states: list[str]) -> None:
    """A chain is broken if the listing lacks a needed backup, unknown if a needed one was left out or cannot be found, else complete."""
    await _load_walg(import_url, _walg(*backups, *_FULL, selection=selection))
    assert await _days(sql) == states + ["complete"] * len(_FULL)


async def test_an_increment_without_a_parent(import_url: str, sql: Sql) -> None:
    """The chain of an increment without a recorded parent is unknown."""
    await _load_walg(import_url, _walg(_Backup(0, None, {"Name": f"{_name(0)}_D_20261001T000000Z"}), *_FULL))
    assert (await _days(sql))[0] == "unknown"


async def test_broken_chain_becomes_complete(import_url: str, sql: Sql) -> None:
    """A broken chain is complete again when the listing has the base again, and only changed rows are written."""
    whole = [_Backup(0), _Backup(1, 0), _Backup(2)]
    await _load_walg(import_url, _walg(*whole))
    await _load_walg(import_url, _walg(*whole[1:]))
    assert await _days(sql) == ["missing", "broken", "complete"]
    written = await sql.fetch("SELECT id, xmin::text FROM backups ORDER BY id")
    await _load_walg(import_url, _walg(*whole[1:]))
    assert await sql.fetch("SELECT id, xmin::text FROM backups ORDER BY id") == written
    await _load_walg(import_url, _walg(*whole))
    assert await _days(sql) == ["complete", "complete", "complete"]


async def test_a_long_chain(import_url: str, sql: Sql) -> None:
    """The state of the first of 3,000 increments is inherited by all of them, in a time that is linear in their number."""
    await _load_walg(import_url, _walg(*(_Backup(day, day - 1) for day in range(1, 3001)), _Backup(4000)))
    assert await sql.fetchval("SELECT count(*) FROM backups WHERE chain = 'broken'") == 3000


async def test_missing(import_url: str, sql: Sql, database: Database) -> None:
    """A backup that the listing no longer has is marked once with the time of the import, and is not the last one; --prune removes it."""
    backups = [_Backup(day) for day in range(4)]
    await _load_walg(import_url, _walg(*backups))
    assert (await _load_walg(import_url, _walg(*backups[:3]))).missing == 1
    since = await sql.fetchval("SELECT max(missing_since) FROM backups")
    assert (await _load_walg(import_url, _walg(*backups[:3]))).missing == 0
    assert await sql.fetchval("SELECT max(missing_since) FROM backups") == since
    [found] = await freshness(database, folder_id=None, cluster_id=None)
    assert (found.backups, found.restorable, found.missing, found.last_backup_id) == (4, 3, 1, f"c1:{_name(2)}")
    assert (await _load_walg(import_url, _walg(*backups[:3]), prune=True)).pruned.removed == 1


@pytest.mark.parametrize(
    ("changes", "selection"),
    [
        (_BAD, Selection()),
        ({}, Selection(None, frozenset({_name(0)}))),
        ({}, Selection(_FIRST + timedelta(days=1))),
        ({"finish_time": "0001-01-01T00:00:00Z"}, Selection()),
    ],
    ids=["unusable", "excluded", "too early", "without times"],
)
async def test_skipped_entries_are_kept(import_url: str, sql: Sql, changes: dict[str, Any], selection: Selection) -> None:
    """A stored backup whose entry is skipped is neither pruned nor missing."""
    await _load_walg(import_url, _walg(_Backup(0), *_FULL))
    listing = _walg(_Backup(0, None, changes), *_FULL, selection=selection)
    assert (await _load_walg(import_url, listing)).missing == 0
    assert (await _load_walg(import_url, listing, prune=True, prune_any=True)).pruned.removed == 0
    assert len(await _days(sql)) == 21


# Entries


@pytest.mark.parametrize(
    ("bad", "good", "error"),
    [
        (1, 9, None),
        (1, 8, f"1 of 9 entries are unusable, more than 10%.* The first: entry 1 .*compressed_size.* --exclude {_name(0)}$"),
        (2, 18, None),
        (3, 18, "3 of 21 entries are unusable, more than 10%"),
        (1, 0, "1 of 1 entries are unusable, and none is usable"),
    ],
)
async def test_unusable_entries(import_url: str, sql: Sql, bad: int, good: int, error: str | None) -> None:
    """Unusable entries are skipped, counted and named; a listing is rejected if they are more than a tenth, or if none is usable."""
    listing = _walg(*(_Backup(day, None, _BAD) for day in range(bad)), *(_Backup(day) for day in range(bad, bad + good)))
    if error:
        with pytest.raises(InvalidListing, match=error):
            await _load_walg(import_url, listing)
        assert await _days(sql) == []
        return
    summary = await _load_walg(import_url, listing)
    assert (summary.added, summary.unusable, len(summary.unusable_examples)) == (good, bad, bad)
    assert summary.unusable_examples[0].startswith(f"entry 1 ('{_name(0)}'): compressed_size: -1 is not")
    assert [tuple(row) for row in await sql.fetch("SELECT skipped, unusable, excluded FROM imports")] == [(bad, bad, 0)]


async def test_excluded_entries(import_url: str, sql: Sql) -> None:
    """An excluded entry does not count as unusable, and every import reports it."""
    listing = _walg(_Backup(0, None, _BAD), _Backup(1), selection=Selection(None, frozenset({_name(0)})))
    for _ in range(2):
        assert (await _load_walg(import_url, listing)).skipped == {"excluded by --exclude": 1}
    assert [tuple(row) for row in await sql.fetch("SELECT skipped, unusable, excluded FROM imports")] == [(1, 0, 1)]


async def test_future(import_url: str) -> None:
    """An import warns about a backup that is dated in the future, and imports it."""
    now = datetime.now(UTC)
    day = (now + timedelta(hours=6)).replace(microsecond=0)
    ahead = {"finish_time": f"{day:%Y-%m-%dT%H:%M:%SZ}"}
    summary = await _load_walg(import_url, _walg(_Backup(0), _Backup(1, None, ahead)))
    [(warning, noted)] = summary.warnings.items()
    assert warning.startswith("dated in the future")
    assert (summary.added, noted.entries, noted.example) == (2, 1, f"entry 2 ('{_name(1)}')")


# gpbackup


def _row(day: int, **columns: Any) -> dict[str, Any]:
    return {"timestamp": f"202611{day:02}010000", "end_time": f"202611{day:02}020000"} | columns


def _plans(plans: dict[int, list[int]]) -> list[tuple[str, str]]:
    return [(f"202611{day:02}010000", f"202611{needed:02}010000") for day, all_needed in plans.items() for needed in all_needed]


_INCREMENT = {"incremental": 1}


@pytest.mark.parametrize(
    ("rows", "plans", "states"),
    [
        ([_row(1), _row(2, **_INCREMENT), _row(3, **_INCREMENT)], {2: [1, 2], 3: [1, 2, 3]}, ["complete"] * 3),
        ([_row(1, date_deleted="20261110000000"), _row(2, **_INCREMENT), _row(3, **_INCREMENT)], {2: [1], 3: [1, 2]}, ["broken"] * 2),
        ([_row(1, date_deleted="In progress"), _row(2, **_INCREMENT), _row(3)], {2: [1, 2]}, ["broken", "complete"]),
        ([_row(1, date_deleted="Local Delete Failed"), _row(2, **_INCREMENT)], {2: [1, 2]}, ["complete"] * 2),
        ([_row(2, **_INCREMENT), _row(3)], {2: [1, 2]}, ["unknown", "complete"]),
        ([_row(1), _row(2, **_INCREMENT)], {}, ["complete", "unknown"]),
        ([_row(1), _row(2, **_INCREMENT, metadata_only=1)], {}, ["complete", "complete"]),
        ([_row(1, status="Failure"), _row(2, **_INCREMENT)], {2: [1, 2]}, ["unknown"]),
        ([_row(1, database_name=""), _row(2, **_INCREMENT), *map(_row, range(3, 12))], {2: [1, 2]}, ["unknown"] + ["complete"] * 9),
        ([_row(1, date_deleted="20261110000000"), _row(2, **_INCREMENT)], {2: [1, 5]}, ["broken"]),
    ],
    ids=[
        "whole",
        "deleted base",
        "base being deleted",
        "failed deletion",
        "no row",
        "no plan",
        "metadata only",
        "failed base",
        "unusable base",
        "broken and unknown",
    ],
)
async def test_chains_of_gpbackup(
    import_url: str, sql: Sql, tmp_path: Path, rows: list[dict[str, Any]], plans: dict[int, list[int]], states: list[str]
) -> None:
    """A chain is broken if a needed backup was deleted. It is unknown without a plan, or if a needed backup has no row or was left out."""
    await _load_gpbackup(import_url, write_history(tmp_path / "h.db", *rows, plans=_plans(plans)))
    assert await _days(sql) == states


@pytest.mark.parametrize(
    "selection",
    [Selection(None, frozenset({"20261101010000"})), Selection(datetime(2026, 11, 2, tzinfo=UTC))],
    ids=["excluded", "before --since"],
)
@pytest.mark.parametrize("is_stored", [True, False])
async def test_base_of_gpbackup_that_is_left_out(import_url: str, sql: Sql, tmp_path: Path, selection: Selection, is_stored: bool) -> None:
    """The chain of an increment is unknown if the operator leaves out its base, even if an earlier import has stored the base."""
    history = write_history(tmp_path / "h.db", _row(1), _row(2, **_INCREMENT), plans=_plans({2: [1, 2]}))
    if is_stored:
        await _load_gpbackup(import_url, history)
    await _load_gpbackup(import_url, history, selection=selection)
    assert await _days(sql) == (["complete", "unknown"] if is_stored else ["unknown"])


async def test_missing_base_of_gpbackup(import_url: str, sql: Sql, tmp_path: Path) -> None:
    """A stored base that the history no longer has is missing, and breaks the chains that need it."""
    rows, plans = [_row(1), _row(2, **_INCREMENT), _row(3)], _plans({2: [1, 2]})
    await _load_gpbackup(import_url, write_history(tmp_path / "before.db", *rows, plans=plans))
    await _load_gpbackup(import_url, write_history(tmp_path / "after.db", *rows[1:], plans=plans))
    assert await _days(sql) == ["missing", "broken", "complete"]


async def test_prune_counts_each_database(import_url: str, sql: Sql, tmp_path: Path) -> None:
    """--prune refuses to remove more than half of one database, even if it is less than half of the cluster, and names the database."""
    rows = [_row(day) for day in range(1, 11)] + [_row(day, database_name='"Old DW"') for day in (21, 22, 23)]
    await _load_gpbackup(import_url, write_history(tmp_path / "before.db", *rows))
    after = write_history(tmp_path / "after.db", *rows[:11])
    with pytest.raises(ImportRejected, match="^2 of this cluster's 3 backups of database 'Old DW' are not in the listing"):
        await _load_gpbackup(import_url, after, prune=True)
    assert len(await _days(sql)) == 13
    assert (await _load_gpbackup(import_url, after, prune=True, prune_any=True)).pruned.removed == 2


async def test_attempts(import_url: str, tmp_path: Path, database: Database) -> None:
    """Failed and unfinished runs are recorded: running if it is the newest and began in the last 48 hours, otherwise crashed."""
    now = datetime.now(UTC)
    newest, earlier = (f"{now - timedelta(hours=hours):%Y%m%d%H%M%S}" for hours in (1, 47))
    rows = [
        _row(1),
        _row(2, status="Failure"),
        {"timestamp": earlier, "end_time": earlier, "status": "In Progress"},
        {"timestamp": newest, "end_time": newest, "status": "In Progress"},
        _row(3, status="In Progress", database_name="other"),
    ]
    await _load_gpbackup(import_url, write_history(tmp_path / "h.db", *rows))
    found = await attempts(database, folder_id="f1", cluster_id=None)
    assert [(each.database, each.name, each.state) for each in found if each.database == "demo"] == [
        ("demo", newest, "running"),
        ("demo", earlier, "crashed"),
        ("demo", "20261102010000", "failed"),
    ]
    old = now - datetime(2026, 11, 3, 1, tzinfo=UTC) > timedelta(hours=48)
    assert [(each.database, each.state) for each in found if each.database == "other"] == [("other", "crashed" if old else "running")]
    assert isinstance(found[0], Attempt)


async def test_attempts_are_bounded(import_url: str, sql: Sql, tmp_path: Path) -> None:
    """The newest 200 attempts of each database are kept, and an equal import writes none of them again."""
    failures = [{"timestamp": f"{20250101000000 + n}", "status": "Failure"} for n in range(60)]
    many = [failure | {"timestamp": f"{int(failure['timestamp']) + 100 * minute}"} for failure in failures for minute in range(5)]
    history = write_history(tmp_path / "h.db", _row(1), *many)
    await _load_gpbackup(import_url, history)
    written = await sql.fetch("SELECT name, xmin::text FROM attempts ORDER BY name")
    assert len(written) == 200
    assert written[0]["name"] == sorted(each["timestamp"] for each in many)[100]
    await _load_gpbackup(import_url, history)
    assert await sql.fetch("SELECT name, xmin::text FROM attempts ORDER BY name") == written


# Facts


async def test_columns_of_backups(import_url: str, sql: Sql, tmp_path: Path) -> None:
    """A backup has the tool's name, method, contents, database and needed backups, and `permanent` and a size only if they are recorded."""
    permanent, unknown = {"is_permanent": True}, {"is_permanent": None}
    await _load_walg(import_url, _walg(_Backup(0, None, permanent), _Backup(1, 0), _Backup(2, None, unknown)))
    rows = [_row(1), _row(2, **_INCREMENT, include_table_filtered=1), _row(3, metadata_only=1), _row(4, data_only=1, database_name="b")]
    await _load_gpbackup(import_url, write_history(tmp_path / "h.db", *rows, plans=_plans({1: [1], 2: [1, 2], 4: [4]})))
    found = await sql.fetch("SELECT name, method, contents, database, permanent, needs, size FROM backups ORDER BY tool, name")
    first, second, third, fourth = (f"202611{day:02}010000" for day in (1, 2, 3, 4))
    assert [tuple(row) for row in found] == [
        (first, "base", "everything", "demo", None, [], None),
        (second, "incremental", "filtered", "demo", None, [first], None),
        (third, "base", "metadata only", "demo", None, [], None),
        (fourth, "base", "data only", "b", None, [], None),
        (_name(0), "base", "everything", "", True, [], 1000),
        (_name(1), "incremental", "everything", "", False, [_name(0)], 1001),
        (_name(2), "base", "everything", "", None, [], 1002),
    ]


# Freshness


def _facts(row: Freshness) -> tuple[Any, ...]:
    return (
        *(row.database, row.backups, row.restorable, row.partial, row.broken, row.unknown, row.missing),
        *(row.last_backup_id, row.last_base_id, row.last_partial_id, row.failed_attempts, row.last_failed_name),
    )


@pytest.mark.parametrize("rows", [[], [_row(1, status="Failure")]], ids=["empty", "failures only"])
async def test_cluster_without_a_backup(import_url: str, tmp_path: Path, database: Database, rows: list[dict[str, Any]]) -> None:
    """A cluster whose import found no backup has a row without a last backup, and keeps one after everything was pruned (G4)."""
    await _load_gpbackup(import_url, write_history(tmp_path / "h.db", *rows))
    [found] = await freshness(database, folder_id=None, cluster_id=None)
    assert (found.restorable, found.last_created_at) == (0, None)
    assert found.failed_attempts == (1 if rows else None)

    await _load_walg(import_url, _walg(_Backup(0)))
    await _load_walg(import_url, [], prune=True, prune_any=True)
    [_, found] = await freshness(database, folder_id=None, cluster_id=None)
    assert (found.tool, found.backups, found.last_created_at) == ("walg", 0, None)


async def test_dropped_database_stays(import_url: str, tmp_path: Path, database: Database) -> None:
    """A database without backups keeps its row until --ignore-database removes it."""
    await _load_gpbackup(import_url, write_history(tmp_path / "before.db", _row(1), _row(2, database_name="old")))
    after = write_history(tmp_path / "after.db", _row(1))
    await _load_gpbackup(import_url, after, prune=True, prune_any=True)
    assert [row.database for row in await freshness(database, folder_id=None, cluster_id=None)] == ["demo", "old"]
    await _load_gpbackup(import_url, after, ignore_databases=frozenset({"old"}))
    assert [row.database for row in await freshness(database, folder_id=None, cluster_id=None)] == ["demo"]


async def test_moved_and_removed_with_the_cluster(import_url: str, tmp_path: Path, sql: Sql) -> None:
    """Freshness, attempts and imports of every tool move to another folder with the cluster, and are removed with it."""
    tables = ("backups", "imports", "attempts", "freshness")
    history = write_history(tmp_path / "h.db", _row(1), _row(2, status="Failure"))
    await _load_gpbackup(import_url, history)
    await _load_walg(import_url, _walg(_Backup(0)))
    folders = [await sql.fetchval(f"SELECT array_agg(DISTINCT folder_id) FROM {table}") for table in tables]
    assert folders == [["f1"]] * 4
    await load(import_url, _walg(_Backup(0)), Target("f2", "c1", "walg"), Options(move_folder=True))
    folders = [await sql.fetchval(f"SELECT array_agg(DISTINCT folder_id) FROM {table}") for table in tables]
    assert folders == [["f2"]] * 4
    cluster = Cluster("c1", None)
    await remove_cluster(import_url, cluster, expected=await removal_preview(import_url, cluster))
    assert [await sql.fetchval(f"SELECT count(*) FROM {table}") for table in tables] == [0] * 4


async def test_last_base_and_last_increment(import_url: str, database: Database) -> None:
    """The last backup may be an increment; the last base is older."""
    await _load_walg(import_url, _walg(_Backup(0), _Backup(1, 0), _Backup(2, 1)))
    [found] = await freshness(database, folder_id=None, cluster_id=None)
    assert (found.last_backup_id, found.last_base_id, found.last_method) == (f"c1:{_name(2)}", f"c1:{_name(0)}", "incremental")


async def test_run_state() -> None:
    """A run that was recorded as running counts as crashed 48 hours after its start."""
    row = Freshness._make([None] * len(Freshness._fields))._replace(running_started_at=_FIRST)
    assert row.run_state(_FIRST + timedelta(hours=47)) == "running"
    assert row.run_state(_FIRST + timedelta(hours=48)) == "crashed"
    assert row._replace(running_started_at=None).run_state(_FIRST) is None


# One bad entry


async def test_end_before_start(import_url: str, tmp_path: Path, sql: Sql) -> None:
    """A backup that was completed before it started is imported with a duration of 0, by both tools (B1)."""
    started = {"start_time": "2026-11-20T00:15:01Z", "finish_time": "2026-11-20T00:14:59Z"}
    assert (await _load_walg(import_url, _walg(_Backup(0), _Backup(1, None, started)))).added == 2
    history = write_history(tmp_path / "h.db", _row(1), {"timestamp": "20261121010002", "end_time": "20261121010000"})
    assert (await _load_gpbackup(import_url, history)).added == 2
    rows = await sql.fetch("SELECT created_at FROM backups WHERE started_at = created_at ORDER BY 1")
    assert [row[0] for row in rows] == [datetime(2026, 11, 20, 0, 14, 59, tzinfo=UTC), datetime(2026, 11, 21, 1, 0, 0, tzinfo=UTC)]


# Samples


async def test_sample_of_walg(import_url: str, sql: Sql, database: Database) -> None:
    """The sample with a broken chain, and then without a base and another backup, gives the states that were derived by hand."""
    sample = json.loads((ROOT / "samples" / "walg-backup-list.json").read_bytes())
    times = {"start_time": "2026-11-24T00:15:00Z", "finish_time": "2026-11-24T00:30:00Z"}
    orphan = sample[1] | times | {"Name": "backup_20261124T031500Z_D_20261119T031501Z", "increment_from": "backup_20261119T031501Z"}
    full = sample[0] | {"start_time": "2026-11-25T00:15:00Z", "finish_time": "2026-11-25T02:15:00Z", "Name": "backup_20261125T031500Z"}
    for listing in ([*sample, orphan, full], [*sample[1:], orphan]):
        await _load_walg(import_url, walg.read(io.BytesIO(json.dumps(listing).encode()), id_prefix="c1"))
    assert await _chains(sql) == {
        "backup_20261120T031501Z": "missing",  # the base was deleted
        "backup_20261121T031502Z_D_20261120T031501Z": "broken",  # needs it
        "backup_20261122T031502Z_D_20261121T031502Z": "broken",  # needs it through the increment of the previous day
        "backup_20261123T203939Z": "complete",
        "backup_20261124T031500Z_D_20261119T031501Z": "broken",  # needs a base that was never listed
        "backup_20261125T031500Z": "missing",  # the newest one, of a storage that is down
    }
    # The catalog has 6 backups: 1 is restorable, none is partial, 3 are broken, none is unknown, and 2 are missing.
    # The last restorable backup is the base with the control plane's id. WAL-G records no attempts.
    [found] = await freshness(database, folder_id=None, cluster_id=None)
    assert _facts(found) == ("", 6, 1, 0, 3, 0, 2, "c9q3vd0k8m1nt5rj2hfe", "c9q3vd0k8m1nt5rj2hfe", None, None, None)
    assert found.last_created_at == datetime(2026, 11, 23, 20, 2, 11, 357020, UTC)


def _sample(path: Path) -> Path:
    """Write the sample of gpbackup with a deleted base, a removed row, and a failed run after the last backup."""
    with contextlib.closing(sqlite3.connect(ROOT / "samples" / "gpbackup_history.db")) as sample, open_history(path) as copy:
        sample.backup(copy)
        copy.execute("UPDATE backups SET date_deleted = '20261120000000' WHERE timestamp = '20261101010002'")
        copy.execute("DELETE FROM backups WHERE timestamp = '20251026013000'")
        insert_row(copy, ROW | {"timestamp": "20261123010002", "end_time": "20261123010003", "status": "Failure"})
    return path


_CHAINS_OF_THE_SAMPLE = {
    "20251026013000": "missing",  # its row was removed
    "20260329013000": "complete",
    "20261101010002": "missing",  # the base was deleted
    "20261102010001": "broken",  # needs it
    "20261103010001": "broken",  # needs it
    "20261104010002": "complete",  # metadata only: needs none
    "20261105010001": "complete",  # data only and filtered: its plan has only itself
    "20261105020001": "complete",  # of the database Sales DW
    "20261109010001": "complete",  # its deletion failed
    "20261110010002": "complete",  # its deletion failed
}


async def test_sample_of_gpbackup(import_url: str, sql: Sql, tmp_path: Path, database: Database) -> None:
    """The sample with a deleted base, a removed row and a failed run gives the states that were derived by hand."""
    for history in (ROOT / "samples" / "gpbackup_history.db", _sample(tmp_path / "h.db")):
        listing = gpbackup.read(history, id_prefix="c1", timezone="Europe/Berlin")
        await load(import_url, listing, Target("f1", "c1", "gpbackup"), Options())
    assert await _chains(sql) == _CHAINS_OF_THE_SAMPLE
    # demo has 9 of them: 3 are restorable, 2 partial, 2 broken, none is unknown, and 2 are missing.
    # Its last restorable backup is a base. The failed run of 6 November is older than that; the one of 23 November is not.
    sales, demo = await freshness(database, folder_id=None, cluster_id=None)
    assert _facts(sales) == ("Sales DW", 1, 1, 0, 0, 0, 0, "c1:20261105020001", "c1:20261105020001", None, 0, None)
    last = "c1:20261110010002"
    # The run of 24 November counts as crashed, and therefore as failed, from 48 hours after its start.
    has_crashed = datetime.now(UTC) - datetime(2026, 11, 24, 22, 0, 1, tzinfo=UTC) > timedelta(hours=48)
    failed = (2, "20261124230001") if has_crashed else (1, "20261123010002")
    assert _facts(demo) == ("demo", 9, 3, 2, 2, 0, 2, last, last, "c1:20261105010001", *failed)
    assert demo.last_created_at == datetime(2026, 11, 10, 2, 41, 20, tzinfo=UTC)
    found = await attempts(database, folder_id=None, cluster_id=None)
    assert [(each.database, each.name, each.state) for each in found] == [
        ("demo", "20261124230001", "crashed" if has_crashed else "running"),
        ("demo", "20261123010002", "failed"),
        ("demo", "20261106010002", "failed"),
    ]
