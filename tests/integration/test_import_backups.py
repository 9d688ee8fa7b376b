"""Imports: one transaction, all or nothing, and no effects except those of the options."""

import asyncio
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from service.entry import Entry, Skipped
from service.errors import CatalogUnavailable, ImportRejected, InvalidListing
from service.importers import walg
from service.postgres.imports.import_backups import Options, Summary, Target, check_target, load
from service.postgres.imports.listing import check_session, copy_listing
from service.postgres.session import open_session
from tests.support.catalog import OWNER, AddBackups, Sql
from tests.support.proxy import proxied

_TIME = datetime(2026, 11, 20, 2, 41, 58, 826199, tzinfo=UTC)
_C1, _C2 = Target("f1", "c1", "walg"), Target("f1", "c2", "walg")


def _entry(number: int, **changes: Any) -> Entry:
    created_at = _TIME + timedelta(days=number)
    entry = Entry(f"entry {number}", f"n{number}", f"b{number}", created_at, created_at - timedelta(hours=2), 1000 + number)
    return entry._replace(**changes)


def _counts(summary: Summary) -> tuple[int, int, int, int, int]:
    return summary.added, summary.changed, summary.unchanged, summary.pruned.removed, summary.skipped_entries


async def _rows(sql: Sql) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await sql.fetch("SELECT id, folder_id, source_cluster_id, tool, size FROM backups ORDER BY id")]


async def _ids(sql: Sql) -> list[str]:
    return [row[0] for row in await _rows(sql)]


async def test_added_then_unchanged(import_url: str, sql: Sql) -> None:
    """The first import adds every entry; a second import of the same listing writes no row."""
    listing = [_entry(1), _entry(2), _entry(3)]
    assert _counts(await load(import_url, listing, _C1, Options())) == (3, 0, 0, 0, 0)
    written = await sql.fetch("SELECT id, xmin::text, ctid::text FROM backups ORDER BY id")

    assert _counts(await load(import_url, reversed(listing), _C1, Options())) == (0, 0, 3, 0, 0)
    assert await sql.fetch("SELECT id, xmin::text, ctid::text FROM backups ORDER BY id") == written
    assert (await _rows(sql))[0] == ("b1", "f1", "c1", "walg", 1001)


@pytest.mark.parametrize("change", [{"size": 7}, {"created_at": _TIME + timedelta(days=9)}, {"started_at": _TIME - timedelta(days=9)}])
async def test_changed(import_url: str, sql: Sql, change: dict[str, Any]) -> None:
    """A changed entry changes its own row only."""
    await load(import_url, [_entry(1), _entry(2)], _C1, Options())
    assert _counts(await load(import_url, [_entry(1), _entry(2, **change)], _C1, Options())) == (0, 1, 1, 0, 0)
    row = await sql.fetchrow("SELECT * FROM backups WHERE id = 'b2'")
    assert row is not None
    assert {name: row[name] for name in change} == change


async def test_skipped_are_counted_by_reason(import_url: str, sql: Sql) -> None:
    """Skipped entries are counted by reason, and have no row."""
    summary = await load(import_url, [Skipped(None, "old"), _entry(1), Skipped(None, "old"), Skipped(None, "running")], _C1, Options())
    assert summary.skipped == {"old": 2, "running": 1}
    assert await _ids(sql) == ["b1"]


async def test_truncated_listing(import_url: str, sql: Sql) -> None:
    """An error at the last entry changes neither the catalog nor the record of imports."""
    await load(import_url, [_entry(1)], _C1, Options())
    before = await sql.fetch("SELECT * FROM imports")

    def listing() -> Iterator[Entry]:
        yield _entry(1, size=7)
        yield _entry(2)
        raise InvalidListing("the input ends early")

    with pytest.raises(InvalidListing, match="the input ends early"):
        await load(import_url, listing(), _C1, Options(prune=True, prune_any=True))
    assert await _rows(sql) == [("b1", "f1", "c1", "walg", 1001)]
    assert await sql.fetch("SELECT * FROM imports") == before


async def test_listed_twice(import_url: str, sql: Sql) -> None:
    """Two entries with equal ids and facts are one backup, because a storage and its failover storage both list it."""
    assert _counts(await load(import_url, [_entry(1), _entry(2), _entry(1, label="again")], _C1, Options())) == (2, 0, 0, 0, 0)


@pytest.mark.parametrize("change", [{"size": 7}, {"created_at": _TIME + timedelta(days=9)}, {"started_at": _TIME - timedelta(days=9)}])
async def test_two_backups_of_one_id(import_url: str, sql: Sql, change: dict[str, Any]) -> None:
    """An import of two different entries with the same id is rejected, and the error names both."""
    listing = [_entry(1), _entry(2, label="the one"), _entry(2, label="the other", **change)]
    with pytest.raises(ImportRejected, match="^(the one and the other|the other and the one) differ, but have the same id b2: leave one"):
        await load(import_url, listing, _C1, Options())
    assert await _ids(sql) == []


async def test_an_id_of_another_cluster(import_url: str, sql: Sql) -> None:
    """An import is rejected if an id belongs to another cluster, because no backup moves between clusters."""
    await load(import_url, [_entry(1)], _C1, Options())
    with pytest.raises(ImportRejected, match="entry 1: the id b1 already belongs to a backup of cluster c1\\. ") as caught:
        await load(import_url, [_entry(1), _entry(2)], _C2, Options(move_folder=True, prune=True, prune_any=True))
    assert await _rows(sql) == [("b1", "f1", "c1", "walg", 1001)]
    assert str(caught.value).endswith(
        " --exclude n1. If cluster c1 no longer exists, remove it: backup-service remove-cluster --cluster-id c1"
    )


async def test_an_id_of_another_tool(import_url: str, sql: Sql) -> None:
    """An import is rejected if an id belongs to a backup that another tool's import added."""
    await load(import_url, [_entry(1)], Target("f1", "c1", "gpbackup"), Options())
    with pytest.raises(ImportRejected, match="the id b1 already belongs to a backup of cluster c1, imported by gpbackup.* --exclude n1$"):
        await load(import_url, [_entry(1)], _C1, Options())


async def test_another_folder(import_url: str, sql: Sql) -> None:
    """A cluster's backups, including those of other tools, move to another folder only with --move-folder."""
    await load(import_url, [_entry(1), _entry(2)], _C1, Options())
    await load(import_url, [_entry(3)], Target("f1", "c1", "gpbackup"), Options())
    moved = Target("f2", "c1", "walg")

    with pytest.raises(ImportRejected, match="cluster c1 has 3 backups in folder f1: --move-folder moves all of them to f2"):
        await load(import_url, [_entry(1)], moved, Options())
    assert {row[1] for row in await _rows(sql)} == {"f1"}

    dry = await load(import_url, [_entry(1), _entry(4)], moved, Options(move_folder=True, dry_run=True))
    assert {row[1] for row in await _rows(sql)} == {"f1"}
    assert (dry.moved, _counts(dry)) == (3, (1, 0, 1, 0, 0))

    summary = await load(import_url, [_entry(1), _entry(4)], moved, Options(move_folder=True))
    assert summary == dry._replace(dry_run=False)
    assert {row[1] for row in await _rows(sql)} == {"f2"}
    assert await sql.fetchval("SELECT count(*) FROM imports WHERE folder_id = 'f2'") == 2


async def test_prune_by_cluster_and_tool(import_url: str, sql: Sql) -> None:
    """--prune removes backups that the listing no longer has, of this cluster and tool only."""
    await load(import_url, [_entry(n) for n in (1, 2, 3, 4)], _C1, Options())
    await load(import_url, [_entry(5)], Target("f1", "c1", "gpbackup"), Options())
    await load(import_url, [_entry(6)], _C2, Options())

    assert _counts(await load(import_url, [_entry(1), _entry(2), _entry(3)], _C1, Options())) == (0, 0, 3, 0, 0)
    assert await _ids(sql) == ["b1", "b2", "b3", "b4", "b5", "b6"]

    listing = [_entry(1), _entry(2, size=7), _entry(7)]
    dry = await load(import_url, listing, _C1, Options(prune=True, dry_run=True))
    assert _counts(dry) == (1, 1, 1, 2, 0)
    assert await _ids(sql) == ["b1", "b2", "b3", "b4", "b5", "b6"]

    assert _counts(await load(import_url, listing, _C1, Options(prune=True))) == (1, 1, 1, 2, 0)
    assert await _ids(sql) == ["b1", "b2", "b5", "b6", "b7"]


async def test_prune_guard(import_url: str, sql: Sql) -> None:
    """More than half of the backups are removed only with --prune-any, because the listing may be incomplete."""
    await load(import_url, [_entry(n) for n in range(30)], _C1, Options())
    listing = [_entry(n) for n in range(3)]

    with pytest.raises(ImportRejected, match=r"27 of this cluster's 30 backups are not in the listing.*--prune-any"):
        await load(import_url, listing, _C1, Options(prune=True))
    assert len(await _ids(sql)) == 30
    assert _counts(await load(import_url, [_entry(n) for n in range(15)], _C1, Options(prune=True))) == (0, 0, 15, 15, 0)
    assert _counts(await load(import_url, listing, _C1, Options(prune=True, prune_any=True))) == (0, 0, 3, 12, 0)


async def test_dry_run_of_a_rejected_prune(import_url: str, sql: Sql) -> None:
    """A dry run shows the backups that --prune would remove, even if the import would be rejected without --prune-any."""
    await load(import_url, [_entry(n) for n in range(4)], _C1, Options())
    pruned = (await load(import_url, [_entry(0)], _C1, Options(prune=True, dry_run=True))).pruned
    assert pruned.removed == 3
    assert "3 of this cluster's 4 backups" in (pruned.rejection or "")
    assert len(await _ids(sql)) == 4


async def test_an_empty_listing(import_url: str, sql: Sql) -> None:
    """An empty listing changes nothing; --prune rejects it, because it may be wrongly empty, and --prune-any accepts it."""
    await load(import_url, [_entry(1)], _C1, Options())
    assert _counts(await load(import_url, [], _C1, Options())) == (0, 0, 0, 0, 0)
    for target in (_C1, _C2):
        with pytest.raises(ImportRejected, match="empty listing"):
            await load(import_url, [], target, Options(prune=True))
    assert await _ids(sql) == ["b1"]
    assert _counts(await load(import_url, [], _C1, Options(prune=True, prune_any=True))) == (0, 0, 0, 1, 0)


async def test_the_record_of_imports(import_url: str, sql: Sql) -> None:
    """Each import records its time and the numbers of entries, even if it changed nothing. A dry run records nothing."""
    await load(import_url, [_entry(1)], _C1, Options(dry_run=True))
    assert await sql.fetch("SELECT * FROM imports") == []

    await load(import_url, [_entry(1), _entry(2), Skipped(None, "old")], _C1, Options())
    row = await sql.fetchrow("SELECT * FROM imports")
    assert row is not None
    first = dict(row)
    imported_at = first.pop("imported_at")
    assert first == {
        "source_cluster_id": "c1",
        "tool": "walg",
        "folder_id": "f1",
        "entries": 3,
        "skipped": 1,
        "unusable": 0,
        "excluded": 0,
    }

    await load(import_url, [_entry(1)], _C1, Options())
    [again] = await sql.fetch("SELECT * FROM imports")
    assert again["imported_at"] > imported_at
    assert again["entries"] == 1


async def test_two_imports_at_once(import_url: str, sql: Sql) -> None:
    """Concurrent imports of one cluster run one after the other."""
    listing = [_entry(n) for n in range(200)]
    summaries = await asyncio.gather(*(load(import_url, listing, _C1, Options()) for _ in range(4)))
    assert sorted(summary.added for summary in summaries) == [0, 0, 0, 200]


async def test_visible_at_once(import_url: str, sql: Sql) -> None:
    """A large import writes the visibility map, which index-only scans need; before PostgreSQL 17 only the owner may VACUUM."""
    if sql.get_server_version() < (17,):
        import_url = import_url.replace("backups_import", OWNER)
    await load(import_url, (_entry(n, id=f"b{n:05}") for n in range(5000)), _C1, Options())
    assert await sql.fetchval("SELECT relpages > 0 AND relallvisible = relpages FROM pg_class WHERE relname = 'backups'")


async def test_another_session(import_url: str) -> None:
    """An import is rejected if its transaction runs in another session than its listing, as a pooler in transaction mode may cause."""
    async with open_session(import_url) as connection, open_session(import_url) as other:
        tally = await copy_listing(connection, [_entry(1)])
        await check_session(connection, tally)
        with pytest.raises(CatalogUnavailable, match="needs one session of PostgreSQL"):
            await check_session(other, tally)


async def test_no_database() -> None:
    """A database that cannot be reached is a clear error without the password."""
    with pytest.raises(CatalogUnavailable) as caught:
        await load("postgresql://user:hunter2@127.0.0.1:1/db", [], _C1, Options())
    assert str(caught.value) == "cannot connect to 127.0.0.1:1: connection refused"
    assert "hunter2" not in str(caught.value)


async def test_connection_lost_while_closing(postgres: EmbeddedPostgres, database_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the network fails after the last response, a committed write does not fail, and a rejected one raises its own error."""
    monkeypatch.setattr("service.postgres.session._CONNECT_TIMEOUT_S", 2.0)
    async with proxied(postgres.sockets / ".s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database_name}"
        async with open_session(url):
            proxy.blackhole()
        proxy.restore()

        async def refused() -> None:
            async with open_session(url):
                proxy.blackhole()
                raise ImportRejected

        with pytest.raises(ImportRejected):
            await refused()


async def test_an_id_that_is_taken_during_an_import(import_url: str, add_backups: AddBackups) -> None:
    """If another cluster's import takes an id after this one has checked it, the import is rejected."""
    [backup] = await add_backups(1)
    columns = "folder_id, created_at, source_cluster_id, started_at, size, tool"
    with pytest.raises(ImportRejected, match="another cluster's import has just taken one of these ids: run the import again"):
        async with open_session(import_url) as connection:
            await connection.execute(f"INSERT INTO backups (id, {columns}) SELECT id, {columns} FROM backups WHERE id = $1", backup.id)


@pytest.mark.parametrize("name", ["", "x" * 51, "a\0", "a\nb", "\x1b[2J", "\udcff"])
def test_invalid_ids_of_targets(name: str) -> None:
    """A value that cannot be the id of a folder or cluster is rejected before the listing is read."""
    for target in (Target(name, "c1", "walg"), Target("f1", name, "walg")):
        with pytest.raises(ImportRejected, match="is not an id of a (folder|cluster): 1 to 50 printable characters"):
            check_target(target)
    with pytest.raises(ImportRejected, match="in a token, it means all folders"):
        check_target(Target("*", "c1", "walg"))
    check_target(Target("папка 1", "\U0001f418" * 50, "walg"))


async def test_a_listing_cannot_block_the_imports_of_another_cluster(import_url: str, sql: Sql) -> None:
    """A listing that claims the future id of another cluster's backup is rejected, and that cluster's import works."""
    name = "backup_20261120T031501Z"
    entry = {"Name": name, "start_time": "2026-11-20T00:15:01Z", "finish_time": "2026-11-20T02:41:58Z", "compressed_size": 5}
    claim = [entry | {"user_data": {"backup_id": f"c2:{name}"}}]
    with pytest.raises(InvalidListing, match="user_data.backup_id: 'c2:backup_20261120T031501Z' has the prefix 'c2', but"):
        await load(import_url, walg.read(io.BytesIO(json.dumps(claim).encode()), id_prefix="c1"), _C1, Options())
    summary = await load(import_url, walg.read(io.BytesIO(json.dumps([entry]).encode()), id_prefix="c2"), _C2, Options())
    assert summary.added == 1
    assert await _ids(sql) == [f"c2:{name}"]
