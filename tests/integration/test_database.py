"""Database connections: bounded waits, recovery from every failure, replacement, and unresponsive hosts."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from service.errors import CatalogUnavailable
from service.periodic import PeriodicTask, running_periodically
from service.postgres.database import Database, open_database
from tests.support.catalog import Sql
from tests.support.eventually import eventually
from tests.support.limits import LIMITS
from tests.support.proxy import listening, proxied

_PID = "SELECT pg_backend_pid()"
_LOCKS = "SELECT count(*) FROM pg_locks WHERE relation = 'backups'::regclass AND pid <> pg_backend_pid()"


@pytest.fixture(name="database")
async def _database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url, LIMITS) as database:
        yield database


async def _pid(database: Database) -> int:
    return int((await database.fetch(_PID))[0][0])


async def _concurrent_connections(database: Database) -> int:
    """Run `pool_size` queries at the same time, and return the number of connections that they use."""
    rows = await asyncio.gather(*(database.fetch("SELECT pg_backend_pid(), pg_sleep(0.2)") for _ in range(LIMITS.pool_size)))
    assert database.connections <= LIMITS.pool_size + 1  # one is reserved for probes
    return len({row[0][0] for row in rows})


async def _wait_until_complete(database: Database) -> None:
    """Wait until the pool has `pool_size` connections."""
    await eventually(lambda: _concurrent_connections(database), LIMITS.pool_size, timeout_s=20, retried=(CatalogUnavailable,))


async def test_connections_are_reused(database: Database) -> None:
    """Queries one after the other use the same connection, and no other is opened."""
    assert len({await _pid(database) for _ in range(20)}) == 1
    assert (database.connections, database.idle_connections) == (1, 1)


async def test_pool_exhausted(database_url: str, sql: Sql) -> None:
    """A query waits for a connection for a limited time, and calls that timed out or were cancelled do not reduce the pool."""
    async with open_database(database_url, LIMITS._replace(acquire=timedelta(seconds=1.5))) as database:
        holding = [asyncio.ensure_future(database.fetch("SELECT pg_sleep(20)")) for _ in range(2)]
        running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(20)'"
        await eventually(lambda: sql.fetchval(running), 2)
        outcomes = await asyncio.gather(*(_pid(database) for _ in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [CatalogUnavailable] * 5
        assert {str(outcome) for outcome in outcomes} == {"no connection was free within 1.5 s: all 2 of the pool were in use"}
        for call in holding:
            call.cancel()
        await asyncio.wait(holding)
        await _wait_until_complete(database)


def _lock_table(url: str, locked: threading.Event, prepared: threading.Event) -> None:
    """Lock the table until `prepared` is set, and return when PostgreSQL has prepared the query that waited for the lock."""

    async def lock() -> None:
        holder = await asyncpg.connect(url)
        async with holder.transaction():
            await holder.execute("LOCK TABLE backups IN ACCESS EXCLUSIVE MODE")
            locked.set()
            await asyncio.to_thread(prepared.wait)
        await eventually(lambda: holder.fetchval(_LOCKS), 1)
        await holder.close()

    asyncio.run(lock())


async def test_cancelled_before_it_is_executed(database: Database, postgres: EmbeddedPostgres, database_name: str, sql: Sql) -> None:
    """A query that is cancelled when PostgreSQL has prepared it, but not executed it, leaves no lock on the table."""
    locked, prepared = threading.Event(), threading.Event()
    holding = threading.Thread(target=_lock_table, args=(postgres.url(database_name), locked, prepared))
    holding.start()
    await asyncio.to_thread(locked.wait)
    query = asyncio.ensure_future(database.fetch("SELECT id FROM backups"))
    await eventually(lambda: sql.fetchval(f"{_LOCKS} AND NOT granted"), 1)
    prepared.set()
    holding.join()  # blocks the event loop, so that it cannot send the query's execution
    query.cancel()
    await asyncio.wait((query,))
    assert query.cancelled()
    await eventually(lambda: sql.fetchval(_LOCKS), 0)


async def test_close_during_a_query(database_url: str) -> None:
    """Closing the database waits for a limited time for the queries in progress, and then ends them."""
    async with asyncio.timeout(10):
        async with open_database(database_url, LIMITS._replace(acquire=timedelta(seconds=0.5))) as database:
            await _pid(database)
            running = asyncio.ensure_future(database.fetch("SELECT pg_sleep(20)"))
            await eventually(lambda: database.idle_connections, 0)
        with pytest.raises(CatalogUnavailable):
            await running


async def test_lost_idle_connection(database: Database, sql: Sql) -> None:
    """A connection that was lost while it was idle fails no query."""
    pid = await _pid(database)
    await sql.execute("SELECT pg_terminate_backend($1)", pid)
    await eventually(lambda: database.connections, 0)
    assert await _pid(database) != pid


async def test_read_only(database: Database) -> None:
    """The service's connections cannot write."""
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await database.fetch("DELETE FROM backups")


async def test_connections_are_renewed_periodically(database_url: str) -> None:
    """A periodic call of `reconnect` replaces an idle connection."""
    async with open_database(database_url, LIMITS) as database:
        task = PeriodicTask("renew connections", database.reconnect, timedelta(seconds=0.05))
        async with running_periodically(task):
            first = await _pid(database)
            await eventually(lambda: _pid(database), lambda pid: pid != first)


async def test_terminated_backends(database: Database, sql: Sql) -> None:
    """Backends that are terminated between and during queries cause `CatalogUnavailable` only, and the pool recovers."""
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
    await _wait_until_complete(database)


async def test_cancelled_queries(database: Database, sql: Sql) -> None:
    """Thousands of calls that are cancelled, during a query or while they wait for a connection, leak neither connections nor backends."""
    for _ in range(40):
        calls = [asyncio.ensure_future(database.fetch("SELECT pg_sleep(5)")) for _ in range(50)]
        await asyncio.sleep(0.002)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    await _wait_until_complete(database)
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backup-service' AND datname = current_database()"
    await eventually(lambda: sql.fetchval(query), lambda count: count <= LIMITS.pool_size + 1, timeout_s=20)


async def test_statement_timeout(database_url: str) -> None:
    """A statement that exceeds its timeout is cancelled."""
    async with open_database(database_url, LIMITS._replace(statement=timedelta(seconds=0.2))) as database:
        with pytest.raises(CatalogUnavailable):
            await database.fetch("SELECT pg_sleep(10)")


@pytest.fixture(name="unresponsive_port")
async def _unresponsive_port() -> AsyncIterator[int]:
    """Yield a port that accepts connections and never answers."""

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with listening(ignore) as port:
        yield port


async def test_unresponsive_server(unresponsive_port: int) -> None:
    """Queries to a server that accepts connections and never answers fail in time, and the pool closes."""
    limits = LIMITS._replace(connect=timedelta(seconds=0.2), acquire=timedelta(seconds=0.5))
    async with asyncio.timeout(5):
        async with open_database(f"postgresql://u@127.0.0.1:{unresponsive_port}/d", limits) as database:
            for _ in range(3):
                with pytest.raises(CatalogUnavailable):
                    await database.fetch(_PID)


async def test_wait_and_connect(unresponsive_port: int) -> None:
    """The waits for other queries and for a connection share one limit."""
    limits = LIMITS._replace(pool_size=1, connect=timedelta(seconds=1.8), acquire=timedelta(seconds=2))
    async with open_database(f"postgresql://u@127.0.0.1:{unresponsive_port}/d", limits) as database, asyncio.timeout(3):
        outcomes = await asyncio.gather(database.fetch(_PID), database.fetch(_PID), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [CatalogUnavailable] * 2


async def test_several_hosts(postgres: EmbeddedPostgres, database_name: str) -> None:
    """The first usable host that matches target_session_attrs is used."""
    sockets = str(postgres.sockets)
    url = f"postgresql://postgres@/{database_name}?host=/nowhere,{sockets}&port=5432,5432"
    async with open_database(f"{url}&target_session_attrs=primary", LIMITS) as database:
        assert await _pid(database)
    async with open_database(f"{url}&target_session_attrs=prefer-standby", LIMITS) as database:
        assert await _pid(database)
    async with open_database(f"{url}&target_session_attrs=standby", LIMITS) as database:
        with pytest.raises(CatalogUnavailable):
            await database.fetch(_PID)


async def test_unresponsive_host(postgres: EmbeddedPostgres, database_name: str, unresponsive_port: int) -> None:
    """Each host has its own timeout, and a host that timed out is tried last from then on."""
    url = f"postgresql://postgres@/{database_name}?host=127.0.0.1,{postgres.sockets}&port={unresponsive_port},5432"
    limits = LIMITS._replace(connect=timedelta(seconds=2), acquire=timedelta(seconds=3.8))
    for attributes in ("any", "read-write", "prefer-standby"):
        async with open_database(f"{url}&target_session_attrs={attributes}", limits) as database:
            assert await _pid(database)
            await database.reconnect()
            async with asyncio.timeout(1.8):
                assert await _pid(database)


async def test_unresponsive_host_with_a_longer_timeout(postgres: EmbeddedPostgres, database_name: str, unresponsive_port: int) -> None:
    """If a call times out before its unresponsive host, the next call tries another host."""
    url = f"postgresql://postgres@/{database_name}?host=127.0.0.1,{postgres.sockets}&port={unresponsive_port},5432"
    limits = LIMITS._replace(connect=timedelta(seconds=10), acquire=timedelta(seconds=0.8))
    async with open_database(url, limits) as database:
        with pytest.raises(CatalogUnavailable):
            await database.fetch(_PID)
        assert await _pid(database)


@pytest.mark.parametrize("attributes", ["any", "read-write", "prefer-standby"])
async def test_several_unresponsive_hosts(postgres: EmbeddedPostgres, database_name: str, unresponsive_port: int, attributes: str) -> None:
    """The only responsive host is reached after some calls, although each call has time for one unresponsive host only."""
    hosts, ports = ",".join(["127.0.0.1"] * 3), ",".join([str(unresponsive_port)] * 3)
    url = f"postgresql://postgres@/{database_name}?host={hosts},{postgres.sockets}&port={ports},5432"
    limits = LIMITS._replace(connect=timedelta(seconds=1), acquire=timedelta(seconds=1.7))
    async with open_database(f"{url}&target_session_attrs={attributes}", limits) as database:
        for _ in range(2):
            with pytest.raises(CatalogUnavailable):
                await database.fetch(_PID)
        assert await _pid(database)


async def test_host_becomes_unresponsive(postgres: EmbeddedPostgres, database_name: str) -> None:
    """All connections to a host are dropped when a probe times out."""
    limits = LIMITS._replace(pool_size=5, connect=timedelta(seconds=0.5))
    async with proxied(postgres.sockets / ".s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@/{database_name}?host=127.0.0.1,{postgres.sockets}&port={proxy.port},5432"
        async with open_database(url, limits) as database:
            await asyncio.gather(*(database.fetch("SELECT pg_sleep(0.2)") for _ in range(5)))
            assert database.idle_connections == 5
            proxy.blackhole()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await database.probe(_PID)
            async with asyncio.timeout(5):  # less than the timeout of a statement
                assert await database.probe(_PID)
                assert await _pid(database)
