"""Connections: bounded waits, nothing leaked, and none that grows old."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from service.errors import CatalogUnavailable
from service.postgres.database import Database, Limits, open_database
from tests.support.catalog import Sql
from tests.support.proxy import proxied

_LIMITS = Limits(
    pool_size=2,
    connect=timedelta(seconds=3),
    acquire=timedelta(seconds=5),
    statement=timedelta(seconds=10),
    max_age=timedelta(hours=1),
)
_PID = "SELECT pg_backend_pid()"


@pytest.fixture(name="database")
async def _database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url, _LIMITS) as database:
        yield database


async def _pid(database: Database) -> int:
    return int((await database.fetch(_PID))[0][0])


async def _check_whole(database: Database) -> None:
    """As many queries have a connection at once as the pool is large."""
    rows = await asyncio.gather(*(database.fetch("SELECT pg_backend_pid(), pg_sleep(0.2)") for _ in range(_LIMITS.pool_size)))
    assert len({row[0][0] for row in rows}) == _LIMITS.pool_size
    assert database.connections <= _LIMITS.pool_size + 1  # one is to look after PostgreSQL


async def test_connections_are_kept(database: Database) -> None:
    """Connections are used again, and there are no more than are needed."""
    assert len({await _pid(database) for _ in range(20)}) == 1
    assert (database.connections, database.idle_connections) == (1, 1)


async def test_no_connection_comes_free(database_url: str, sql: Sql) -> None:
    """A call waits for a connection no longer than it may, and those that gave up leave room for others."""
    async with open_database(database_url, _LIMITS._replace(acquire=timedelta(seconds=1.5))) as database:
        holding = [asyncio.ensure_future(database.fetch("SELECT pg_sleep(20)")) for _ in range(2)]
        async with asyncio.timeout(10):
            while await sql.fetchval("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(20)'") < 2:
                await asyncio.sleep(0.01)
        outcomes = await asyncio.gather(*(_pid(database) for _ in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [CatalogUnavailable] * 5
        for call in holding:
            call.cancel()
        await asyncio.wait(holding)
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(CatalogUnavailable):
                    await _check_whole(database)
                    break


async def test_a_lost_connection_is_not_used_again(database: Database, sql: Sql) -> None:
    """A connection that was lost while nobody used it fails no call."""
    pid = await _pid(database)
    await sql.execute("SELECT pg_terminate_backend($1)", pid)
    async with asyncio.timeout(10):
        while database.connections:
            await asyncio.sleep(0.01)
    assert await _pid(database) != pid


async def test_the_pool_is_read_only(database: Database) -> None:
    """The service's connections cannot write."""
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await database.fetch("DELETE FROM backups")


async def test_connections_do_not_grow_old(database_url: str) -> None:
    """A connection is replaced once it is as old as it may become."""
    async with open_database(database_url, _LIMITS._replace(max_age=timedelta(seconds=0.05))) as database:
        renewing = asyncio.ensure_future(database.renew())
        first = await _pid(database)
        async with asyncio.timeout(10):
            while await _pid(database) == first:
                await asyncio.sleep(0.02)
        renewing.cancel()


async def test_every_backend_killed(database: Database, sql: Sql) -> None:
    """Backends that are killed between and in queries are UNAVAILABLE, no other error, and the pool is whole afterwards."""
    outcomes = set()
    for _ in range(20):
        slow = asyncio.ensure_future(database.fetch("SELECT pg_sleep(0.05)"))
        await asyncio.sleep(0.01)
        await sql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'backup-service'")
        for query in (slow, database.fetch(_PID)):
            try:
                await query
                outcomes.add("ok")
            except CatalogUnavailable:
                outcomes.add("unavailable")
    assert outcomes == {"ok", "unavailable"}
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(CatalogUnavailable):
                await _check_whole(database)
                break


async def test_cancelled_calls_leak_nothing(database: Database, sql: Sql) -> None:
    """Thousands of calls that are cancelled in a query or while they wait for a connection leave pool and backends as they were."""
    for _ in range(40):
        calls = [asyncio.ensure_future(database.fetch("SELECT pg_sleep(5)")) for _ in range(50)]
        await asyncio.sleep(0.002)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    async with asyncio.timeout(20):
        await _check_whole(database)
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backup-service' AND datname = current_database()"
        while await sql.fetchval(query) > _LIMITS.pool_size + 1:
            await asyncio.sleep(0.05)


async def test_a_statement_that_takes_too_long(database_url: str) -> None:
    """The server itself ends a statement that takes longer than any may."""
    async with open_database(database_url, _LIMITS._replace(statement=timedelta(seconds=0.2))) as database:
        with pytest.raises(CatalogUnavailable):
            await database.fetch("SELECT pg_sleep(10)")


@pytest.fixture(name="silent_port")
async def _silent_port() -> AsyncIterator[int]:
    """A port that takes connections, and never says a word."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    hole: Any = await asyncio.start_server(swallow, "127.0.0.1", 0)
    yield hole.sockets[0].getsockname()[1]
    hole.close()


async def test_a_black_hole(silent_port: int) -> None:
    """A server that takes connections and never says a word costs no more than the stated waits, and the pool closes."""
    limits = _LIMITS._replace(connect=timedelta(seconds=0.2), acquire=timedelta(seconds=0.5))
    async with asyncio.timeout(5):
        async with open_database(f"postgresql://u@127.0.0.1:{silent_port}/d", limits) as database:
            for _ in range(3):
                with pytest.raises(CatalogUnavailable):
                    await database.fetch(_PID)


async def test_a_connection_after_a_wait(silent_port: int) -> None:
    """A call that has waited for others has no more than the rest of its time to connect in."""
    limits = _LIMITS._replace(pool_size=1, connect=timedelta(seconds=1.8), acquire=timedelta(seconds=2))
    async with open_database(f"postgresql://u@127.0.0.1:{silent_port}/d", limits) as database, asyncio.timeout(3):
        outcomes = await asyncio.gather(database.fetch(_PID), database.fetch(_PID), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [CatalogUnavailable] * 2


async def test_several_hosts(postgres: Any, database_name: str) -> None:
    """Of several hosts the first that can be used is; target_session_attrs says which may."""
    sockets = str(postgres.sockets)
    url = f"postgresql://postgres@/{database_name}?host=/nowhere,{sockets}&port=5432,5432"
    async with open_database(f"{url}&target_session_attrs=primary", _LIMITS) as database:
        assert await _pid(database)
    async with open_database(f"{url}&target_session_attrs=prefer-standby", _LIMITS) as database:
        assert await _pid(database)
    async with open_database(f"{url}&target_session_attrs=standby", _LIMITS) as database:
        with pytest.raises(CatalogUnavailable):
            await database.fetch(_PID)


async def test_a_silent_host(postgres: Any, database_name: str, silent_port: int) -> None:
    """Each host has the whole time to connect in; one that says nothing costs it once, also where it would be preferred if it were a
    standby, and then the others are asked without it."""
    url = f"postgresql://postgres@/{database_name}?host=127.0.0.1,{postgres.sockets}&port={silent_port},5432"
    limits = _LIMITS._replace(connect=timedelta(seconds=2), acquire=timedelta(seconds=3.8))
    for attributes in ("any", "read-write", "prefer-standby"):
        async with open_database(f"{url}&target_session_attrs={attributes}", limits) as database:
            assert await _pid(database)
            await database.reconnect()
            async with asyncio.timeout(1.8):
                assert await _pid(database)


async def test_a_silent_host_that_has_more_time_than_a_call(postgres: Any, database_name: str, silent_port: int) -> None:
    """A host that says nothing costs a call all of its time, where that is less than the host's, and the next call asks another one."""
    url = f"postgresql://postgres@/{database_name}?host=127.0.0.1,{postgres.sockets}&port={silent_port},5432"
    limits = _LIMITS._replace(connect=timedelta(seconds=10), acquire=timedelta(seconds=0.8))
    async with open_database(url, limits) as database:
        with pytest.raises(CatalogUnavailable):
            await database.fetch(_PID)
        assert await _pid(database)


@pytest.mark.parametrize("attributes", ["any", "read-write", "prefer-standby"])
async def test_all_hosts_but_one_are_silent(postgres: Any, database_name: str, silent_port: int, attributes: str) -> None:
    """However many hosts say nothing before the one that answers, it is reached, though there is time for one of them at each try."""
    hosts, ports = ",".join(["127.0.0.1"] * 3), ",".join([str(silent_port)] * 3)
    url = f"postgresql://postgres@/{database_name}?host={hosts},{postgres.sockets}&port={ports},5432"
    limits = _LIMITS._replace(connect=timedelta(seconds=1), acquire=timedelta(seconds=1.7))
    async with open_database(f"{url}&target_session_attrs={attributes}", limits) as database:
        for _ in range(2):
            with pytest.raises(CatalogUnavailable):
                await database.fetch(_PID)
        assert await _pid(database)


async def test_a_host_that_went_silent(postgres: Any, database_name: str) -> None:
    """Connections to a host that has gone without a word are left, however many they are, once it says nothing to who looks after it."""
    limits = _LIMITS._replace(pool_size=5, connect=timedelta(seconds=0.5))
    async with proxied(postgres.sockets / ".s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@/{database_name}?host=127.0.0.1,{postgres.sockets}&port={proxy.port},5432"
        async with open_database(url, limits) as database:
            await asyncio.gather(*(database.fetch("SELECT pg_sleep(0.2)") for _ in range(5)))
            assert database.idle_connections == 5
            proxy.blackhole()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await database.probe(_PID)
            async with asyncio.timeout(5):  # a query may take ten
                assert await database.probe(_PID)
                assert await _pid(database)
