"""Queries that answer several calls together."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service import pb
from service.backup import Page, Position
from service.errors import BackupNotFound, CatalogUnavailable
from service.postgres.catalog import Catalog
from service.postgres.database import Limits, open_database
from tests.support.catalog import AddBackups, Sql
from tests.support.eventually import eventually

_LIMITS = Limits(pool_size=20, connect=timedelta(seconds=3), acquire=timedelta(seconds=20), statement=timedelta(seconds=30))
_QUERIES = "SELECT count(*) FROM pg_locks WHERE relation = 'backups'::regclass AND NOT granted"
_PROCESS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'backup-service'"

Locked = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture(name="catalog")
async def _catalog(database_url: str) -> AsyncIterator[Catalog]:
    async with open_database(database_url, _LIMITS) as database:
        yield Catalog(database)


@pytest.fixture(name="locked")
def _locked(sql: Sql) -> Locked:
    """Return a context manager that locks the table, so that queries wait."""

    @contextlib.asynccontextmanager
    async def locked() -> AsyncIterator[None]:
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups IN ACCESS EXCLUSIVE MODE")
            yield

    return locked


async def _queries(sql: Sql, count: int) -> None:
    """Wait until `count` queries wait for the lock."""
    await eventually(lambda: sql.fetchval(_QUERIES), count, timeout_s=20)


def _ids(page: Page) -> list[str]:
    return [backup.id for backup in pb.ListBackupsResponse.FromString(bytes(page.elements)).backups]


async def test_one_query_for_several_gets(catalog: Catalog, locked: Locked, sql: Sql, add_backups: AddBackups) -> None:
    """Gets of one iteration of the event loop are one query, and each caller gets only backups of its own folders."""
    [mine] = await add_backups(1, folder_id="f1")
    [other] = await add_backups(1, folder_id="f2")
    folders = frozenset({"f1"})
    async with locked():
        calls = [
            asyncio.ensure_future(catalog.get(backup_id, folders=readable))
            for backup_id, readable in ((mine.id, folders), (other.id, folders), ("absent", None), (other.id, None), (mine.id, None))
        ]
        await _queries(sql, 1)
    own, hidden, absent, all_folders, same = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(own, bytes)
    assert mine.id.encode() in own
    assert [type(error) for error in (hidden, absent)] == [BackupNotFound] * 2
    assert isinstance(all_folders, bytes)
    assert other.id.encode() in all_folders
    assert same == own


async def test_more_gets_than_a_query_answers(catalog: Catalog, locked: Locked, sql: Sql, add_backups: AddBackups) -> None:
    """Gets beyond the limit of a query are answered by the next ones."""
    backups = await add_backups(150)
    async with locked():
        calls = [asyncio.ensure_future(catalog.get(backup.id, folders=None)) for backup in backups]
        await _queries(sql, 3)
    responses = await asyncio.gather(*calls)
    assert [backup.id.encode() in response for backup, response in zip(backups, responses, strict=True)] == [True] * 150


async def test_one_query_for_several_pages(catalog: Catalog, locked: Locked, sql: Sql, add_backups: AddBackups) -> None:
    """Pages of different folders, positions and sizes are one query, and each is the page that was requested."""
    first, second = await add_backups(30, folder_id="f1"), await add_backups(3, folder_id="f2", source_cluster_id="c2")
    after = Position(first[4].created_at, first[4].id)
    async with locked():
        requests = [("f1", None, 10), ("f1", after, 10), ("f1", after, 25), ("f1", after, 26), ("f2", None, 2), ("f3", None, 5)]
        calls = [asyncio.ensure_future(catalog.page(folder, after=at, size=size, client="")) for folder, at, size in requests]
        await _queries(sql, 1)
    pages = await asyncio.gather(*calls)
    expected = [first[:10], first[5:15], first[5:], first[5:], second[:2], []]
    assert [_ids(page) for page in pages] == [[backup.id for backup in backups] for backups in expected]
    assert [page.last is not None for page in pages] == [True, True, False, False, True, False]
    last = pages[1].last
    assert last is not None
    assert bytes(pages[1].elements).endswith(last)
    assert _ids(Page(last)) == [first[14].id]


async def test_one_query_for_several_pages_of_clusters(catalog: Catalog, locked: Locked, sql: Sql, add_backups: AddBackups) -> None:
    """The folders of several clusters are read by one query, and their pages by another. Hidden and unknown clusters have no page."""
    first, second = await add_backups(5, source_cluster_id="c1"), await add_backups(5, folder_id="f2", source_cluster_id="c2")
    requests = [("c1", None), ("c2", None), ("c2", frozenset({"f1"})), ("unknown", None)]
    async with locked():
        calls = [
            asyncio.ensure_future(catalog.cluster_page(cluster, folders=folders, after=None, size=3, client=""))
            for cluster, folders in requests
        ]
        await _queries(sql, 1)
    expected = [first[:3], second[:3], [], []]
    assert [_ids(page) for page in await asyncio.gather(*calls)] == [[backup.id for backup in backups] for backups in expected]


async def test_later_calls_do_not_wait(catalog: Catalog, locked: Locked, sql: Sql, add_backups: AddBackups) -> None:
    """A call that arrives while a query runs has a query of its own."""
    [backup] = await add_backups(1)
    async with locked():
        calls = []
        for number in range(1, 4):
            calls.append(asyncio.ensure_future(catalog.get(backup.id, folders=None)))
            await _queries(sql, number)
    assert len(set(await asyncio.gather(*calls))) == 1


@pytest.mark.parametrize("moment", ["before the query", "during the query"])
async def test_cancelled_call_of_a_shared_query(catalog: Catalog, locked: Locked, sql: Sql, add_backups: AddBackups, moment: str) -> None:
    """A cancelled or expired call affects no other call of its query, whichever of them began the batch."""
    backups = await add_backups(3)
    async with locked():
        calls = [asyncio.ensure_future(catalog.get(backup.id, folders=None)) for backup in backups]
        await asyncio.sleep(0)  # each call has joined the batch
        if moment == "during the query":
            await _queries(sql, 1)
        calls[0].cancel()
        calls[2].cancel()
        await _queries(sql, 1)
        assert not calls[1].done()
    assert backups[1].id.encode() in await calls[1]
    assert [call.cancelled() for call in calls] == [True, False, True]


async def test_all_calls_are_cancelled(catalog: Catalog, locked: Locked, sql: Sql, add_backups: AddBackups) -> None:
    """The query is cancelled in PostgreSQL when all of its calls are cancelled, and the next calls are answered."""
    [backup] = await add_backups(1)
    async with locked():
        for moment in ("before the query", "during the query"):
            calls = [asyncio.ensure_future(catalog.get(f"{backup.id}{number}", folders=None)) for number in range(3)]
            await asyncio.sleep(0)
            if moment == "during the query":
                await _queries(sql, 1)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            await _queries(sql, 0)
    assert backup.id.encode() in await catalog.get(backup.id, folders=None)


async def test_joining_a_batch_of_cancelled_calls(catalog: Catalog, add_backups: AddBackups) -> None:
    """A call that joins a batch whose other calls have been cancelled is answered."""
    [backup] = await add_backups(1)
    cancelled = asyncio.ensure_future(catalog.get("other", folders=None))

    async def cancel_and_call() -> bytes:
        cancelled.cancel()
        return await catalog.get(backup.id, folders=None)

    calling = asyncio.ensure_future(cancel_and_call())
    async with asyncio.timeout(10):
        assert backup.id.encode() in await calling


async def test_error_reaches_every_call(catalog: Catalog, sql: Sql) -> None:
    """An error of the query is raised in every call, with the same cause, and the next calls have a new query."""
    await sql.execute("ALTER TABLE backups RENAME TO hidden")
    calls: list[Any] = [catalog.get(f"b{number}", folders=None) for number in range(5)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in errors] == [CatalogUnavailable] * 5
    assert {str(error) for error in errors} == {str(errors[0])}
    await sql.execute("ALTER TABLE hidden RENAME TO backups")
    with pytest.raises(BackupNotFound):
        await catalog.get("b1", folders=None)


async def test_error_when_calls_are_cancelled(catalog: Catalog, sql: Sql, locked: Locked) -> None:
    """Only the calls that still wait receive the error of their query."""
    async with locked():
        calls = [asyncio.ensure_future(catalog.get(f"b{number}", folders=None)) for number in range(3)]
        await _queries(sql, 1)
        calls[0].cancel()
        await sql.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'backups'::regclass AND NOT granted")
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, CatalogUnavailable, CatalogUnavailable]


def _large(catalog: Catalog, client: str) -> "asyncio.Task[Page]":
    return asyncio.create_task(catalog.page("f1", after=None, size=1000, client=client), name=client)


async def test_large_pages(catalog: Catalog, locked: Locked, sql: Sql, add_backups: AddBackups) -> None:
    """Two large pages are read at the same time, each by a query of its own, and a small page does not wait for them."""
    backups = await add_backups(250)
    async with locked():
        large = [_large(catalog, "a") for _ in range(10)]
        await _queries(sql, 2)
        small = asyncio.ensure_future(catalog.page("f1", after=None, size=100, client="a"))
        await _queries(sql, 3)
    assert [_ids(page) for page in await asyncio.gather(*large)] == [[backup.id for backup in backups]] * 10
    assert len(_ids(await small)) == 100


class _Started:
    """Stands for the tracing of queries, and records the clients of queries in the order in which they are sent."""

    def __init__(self) -> None:
        self.clients: list[str] = []

    def queries_of(self, database: str) -> Any:
        return self._trace

    @contextlib.contextmanager
    def _trace(self, query: str) -> Iterator[Callable[[], None]]:
        task = asyncio.current_task()
        assert task
        yield lambda: self.clients.append(task.get_name())


async def test_large_pages_of_several_clients(database_url: str, locked: Locked, sql: Sql, add_backups: AddBackups) -> None:
    """A client that requests many large pages delays the page of another client by a few pages only."""
    await add_backups(250)
    started: Any = _Started()
    async with open_database(database_url, _LIMITS, tracing=started) as database:
        catalog = Catalog(database)
        async with locked():
            many = [_large(catalog, "many") for _ in range(64)]
            await _queries(sql, 2)
            one = _large(catalog, "one")
            await asyncio.sleep(0)
        await asyncio.gather(one, *many)
    assert len(started.clients) == 65
    assert started.clients.index("one") < 4


async def test_cancelled_large_pages(catalog: Catalog, locked: Locked, sql: Sql, add_backups: AddBackups) -> None:
    """A large page that is cancelled, while it is read or while it waits, makes room for the next one."""
    await add_backups(250)
    async with locked():
        pages = [_large(catalog, "a") for _ in range(5)]
        await _queries(sql, 2)
        for number in (0, 1, 3):
            pages[number].cancel()
        await _queries(sql, 2)
    outcomes = await asyncio.gather(*pages, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, True, False, True, False]


async def test_large_pages_use_the_same_memory(catalog: Catalog, sql: Sql, add_backups: AddBackups) -> None:
    """PostgreSQL keeps the memory of a large page for the next one, instead of returning it to the kernel after each query."""
    await add_backups(1001, source_cluster_id="c" * 50)
    await _large(catalog, "a")
    process = Path(f"/proc/{await sql.fetchval(_PROCESS)}/stat")
    faults = []
    for _ in range(20):
        before = _page_faults(process)
        await _large(catalog, "a")
        faults.append(_page_faults(process) - before)
    assert sum(faults[10:]) < 100, faults


def _page_faults(process: Path) -> int:
    return int(process.read_text().rpartition(")")[2].split()[7])  # minflt, field 10 of proc_pid_stat(5)


async def test_wait_for_a_turn_is_bounded(database_url: str, locked: Locked, sql: Sql) -> None:
    """A large page whose turn does not come within the acquire timeout is unavailable, and the error names the cause."""
    limits = _LIMITS._replace(acquire=timedelta(seconds=0.5))
    async with open_database(database_url, limits) as database, locked():
        pages = [_large(Catalog(database), "a") for _ in range(2)]
        await _queries(sql, 2)
        with pytest.raises(CatalogUnavailable, match=r"no large page could be read within 0\.5 s: 2 others were being read"):
            await asyncio.wait_for(_large(Catalog(database), "b"), 10)
        for page in pages:
            page.cancel()


async def test_waits_share_one_timeout(database_url: str, locked: Locked, sql: Sql) -> None:
    """The wait for a turn and the wait for a connection together are bounded by the acquire timeout."""
    limits = _LIMITS._replace(pool_size=2, acquire=timedelta(seconds=2))
    async with open_database(database_url, limits) as database, locked():
        catalog = Catalog(database)
        first = [_large(catalog, "a") for _ in range(2)]
        await _queries(sql, 2)
        began = time.monotonic()
        waiting = _large(catalog, "b")
        others = []
        for number in range(3):  # they wait for connections
            others.append(asyncio.ensure_future(catalog.get(f"b{number}", folders=None)))
            await asyncio.sleep(0.5)
        for page in first:  # b has its turn, but no connection
            page.cancel()
        with pytest.raises(CatalogUnavailable):
            await asyncio.wait_for(waiting, 10)
        assert time.monotonic() - began < 3
        for other in others:
            other.cancel()
        await asyncio.wait([*first, *others])
