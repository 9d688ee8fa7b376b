"""Reads from a standby: replication lag, readiness, and the choice between standby and primary."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import asyncpg
import grpc
import pytest

from service import pb
from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.connect.replication import connect_unless_lagging, replication_lag
from service.postgres.database import Database, open_database
from service.postgres.migration import Roles, migrate
from tests.support.catalog import Sql
from tests.support.eventually import eventually
from tests.support.limits import LIMITS
from tests.support.postgres import run_postgres, temporary_folder
from tests.support.server import start
from tests.support.standby import clone_standby

_LIMITS = LIMITS._replace(acquire=timedelta(seconds=1))
_INSERT = """
    INSERT INTO backups (id, folder_id, created_at, source_cluster_id, started_at, size, tool)
    SELECT $1::text || n, 'f1', timestamptz '2026-01-01' + n * interval '1 minute', 'c1', '2026-01-01', 1, 'manual'
    FROM generate_series(1, $2) n"""


class Pair(NamedTuple):
    """A primary and its standby."""

    primary: EmbeddedPostgres
    standby: EmbeddedPostgres

    def url(self, attributes: str) -> str:
        """Return a URL with both hosts."""
        hosts = f"{self.primary.sockets},{self.standby.sockets}"
        return f"postgresql://postgres@/postgres?host={hosts}&port=5432,5432&target_session_attrs={attributes}"


@pytest.fixture(name="pair", scope="module")
def _pair() -> Iterator[Pair]:
    settings = {
        "fsync": "off",
        "wal_level": "replica",
        "max_wal_senders": "4",
        "wal_receiver_timeout": "2s",
        "wal_retrieve_retry_interval": "200ms",
    }
    with run_postgres(settings) as primary, temporary_folder() as folder:
        migrate(primary.url("postgres"), roles=Roles())
        standby = clone_standby(primary, folder / "standby", **settings)
        with standby.running():
            yield Pair(primary, standby)
        standby.remove()


@pytest.fixture(name="primary_sql")
async def _primary_sql(pair: Pair) -> AsyncIterator[Sql]:
    connection = await asyncpg.connect(pair.primary.url("postgres"))
    await connection.execute("DELETE FROM backups")
    yield connection
    await connection.close()


@pytest.fixture(name="standby_sql")
async def _standby_sql(pair: Pair) -> AsyncIterator[Sql]:
    connection = await asyncpg.connect(pair.standby.url("postgres"))
    yield connection
    await connection.execute("SELECT pg_wal_replay_resume()")
    await connection.close()


async def _until(condition: Callable[[], Awaitable[object]]) -> None:
    await eventually(condition, bool, timeout_s=20)


async def _caught_up(primary_sql: Sql, standby_sql: Sql) -> None:
    position = await primary_sql.fetchval("SELECT pg_current_wal_flush_lsn()::text")
    await _until(lambda: standby_sql.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position))


async def _in_recovery(database: Database) -> bool:
    return bool((await database.fetch("SELECT pg_is_in_recovery()"))[0][0])


async def test_lag(pair: Pair, primary_sql: Sql, standby_sql: Sql) -> None:
    """The lag is zero on a primary, and on an idle standby that has replayed everything; it grows while replay is paused."""
    async with open_database(pair.url("primary"), _LIMITS) as database:
        assert not await _in_recovery(database)
        assert await replication_lag(database) == timedelta(0)
    async with open_database(pair.url("standby"), _LIMITS) as database:
        assert await _in_recovery(database)
        await _caught_up(primary_sql, standby_sql)
        await asyncio.sleep(0.3)

        async def is_up_to_date() -> bool:  # waited for, because the primary also writes without any session
            return await replication_lag(database) == timedelta(0)

        await _until(is_up_to_date)
        await standby_sql.execute("SELECT pg_wal_replay_pause()")
        await _until(lambda: standby_sql.fetchval("SELECT pg_get_wal_replay_pause_state() = 'paused'"))
        await primary_sql.execute(_INSERT, "lag-", 1)

        async def is_behind() -> bool:
            return await replication_lag(database) > timedelta(seconds=0.3)

        await _until(is_behind)


async def test_lag_of_a_disconnected_standby(pair: Pair, primary_sql: Sql, standby_sql: Sql) -> None:
    """The lag of a standby that no longer receives anything is the age of its last transaction, although it has replayed everything."""
    await primary_sql.execute(_INSERT, "cut-", 1)
    await _caught_up(primary_sql, standby_sql)
    conninfo = await standby_sql.fetchval("SHOW primary_conninfo")
    await standby_sql.execute("ALTER SYSTEM SET primary_conninfo = ''")
    await standby_sql.execute("SELECT pg_reload_conf()")
    try:
        async with open_database(pair.url("standby"), _LIMITS) as database:

            async def is_behind() -> bool:
                return await replication_lag(database) > timedelta(seconds=0.3)

            await _until(is_behind)
    finally:
        quoted = await standby_sql.fetchval("SELECT quote_literal($1::text)", conninfo)
        await standby_sql.execute(f"ALTER SYSTEM SET primary_conninfo = {quoted}")
        await standby_sql.execute("SELECT pg_reload_conf()")


async def test_readiness(pair: Pair, primary_sql: Sql, standby_sql: Sql) -> None:
    """A server is not ready while its standby is too far behind."""
    await _caught_up(primary_sql, standby_sql)
    settings = {"listen": "127.0.0.1:0", "drain_delay": "0", "max_replication_lag": "0.5"}
    server = await start(database_url=pair.url("standby"), **settings)

    async def ready() -> bool:
        return server.health.serving

    async def not_ready() -> bool:
        return not server.health.serving

    try:
        await _until(ready)
        await standby_sql.execute("SELECT pg_wal_replay_pause()")
        await _until(lambda: standby_sql.fetchval("SELECT pg_get_wal_replay_pause_state() = 'paused'"))
        await primary_sql.execute(_INSERT, "ready-", 1)
        await _until(not_ready)
        await standby_sql.execute("SELECT pg_wal_replay_resume()")
        await _until(ready)
    finally:
        await server.shutdown()


async def test_pages_from_primary_and_standby(pair: Pair, primary_sql: Sql, standby_sql: Sql) -> None:
    """Paging alternately through a primary and a lagging standby repeats no row, and misses none that both have all the time."""
    await primary_sql.execute(_INSERT, "both-", 50)
    await _caught_up(primary_sql, standby_sql)
    await standby_sql.execute("SELECT pg_wal_replay_pause()")
    await primary_sql.execute(_INSERT, "new-", 50)
    await primary_sql.execute("DELETE FROM backups WHERE id LIKE 'both-%5'")
    settings = {"listen": "127.0.0.1:0", "drain_delay": "0"}
    servers = [await start(database_url=pair.url(role), **settings) for role in ("primary", "standby")]
    channels = [grpc.aio.insecure_channel(str(server.address)) for server in servers]
    walked: list[str] = []
    token = ""
    for channel in itertools.cycle(channels):
        page = await pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="f1", page_size=3, page_token=token))
        walked += [backup.id for backup in page.backups]
        token = page.next_page_token
        if not token:
            break
    for closing in (*[channel.close() for channel in channels], *[server.shutdown() for server in servers]):
        await closing
    assert len(walked) == len(set(walked))
    assert {f"both-{n}" for n in range(1, 51) if n % 10 != 5} <= set(walked)


async def test_lagging_standby(pair: Pair, primary_sql: Sql, standby_sql: Sql) -> None:
    """If a standby is preferred, a ready server reads from the primary while the standby lags, and from the standby afterwards."""
    await _caught_up(primary_sql, standby_sql)
    settings = {"listen": "127.0.0.1:0", "drain_delay": "0", "max_replication_lag": "0.5", "pool_max_age": "0.5"}
    server = await start(database_url=pair.url("prefer-standby"), **settings)
    try:
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            stub = pb.BackupServiceStub(channel)

            async def ready() -> bool:
                return server.health.serving

            async def reads_new_row() -> bool:
                return await ready() and bool((await stub.List(pb.ListBackupsRequest(folder_id="f1"))).backups)

            await _until(ready)
            await standby_sql.execute("SELECT pg_wal_replay_pause()")
            await _until(lambda: standby_sql.fetchval("SELECT pg_get_wal_replay_pause_state() = 'paused'"))
            await primary_sql.execute(_INSERT, "fresh-", 1)
            await _until(reads_new_row)
            read = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'backup-service'"
            await _until(lambda: primary_sql.fetchval(read))
            await standby_sql.execute("SELECT pg_wal_replay_resume()")
            await _until(lambda: primary_sql.fetchval(f"SELECT NOT ({read})"))
            await _until(reads_new_row)
    finally:
        await server.shutdown()


async def test_lagging_standby_without_a_primary(pair: Pair, primary_sql: Sql, standby_sql: Sql) -> None:
    """A preferred standby is used although it lags if the primary cannot be reached."""
    await _caught_up(primary_sql, standby_sql)
    url = pair.url("prefer-standby").replace(str(pair.primary.sockets), "/nowhere")
    async with open_database(url, _LIMITS, max_replication_lag=timedelta(seconds=-1)) as database:
        assert await _in_recovery(database)


async def test_cancelled_while_connecting_to_the_primary(pair: Pair) -> None:
    """If the attempt to connect to the primary is cancelled, the connection to the lagging standby is closed."""
    connections: list[asyncpg.Connection] = []
    connects_to_primary = asyncio.Event()

    async def connect(dsn: str | None = None, **options: Any) -> asyncpg.Connection:
        if options:
            connects_to_primary.set()
            await asyncio.Event().wait()
        connections.append(await asyncpg.connect(pair.standby.url("postgres")))
        return connections[0]

    connecting = asyncio.ensure_future(connect_unless_lagging(connect, timedelta(seconds=-1))())
    await connects_to_primary.wait()
    assert not connections[0].is_closed()
    connecting.cancel()
    await asyncio.wait([connecting])
    assert (connecting.cancelled(), connections[0].is_closed()) == (True, True)


@pytest.mark.parametrize(("attributes", "in_recovery"), [("read-write", False), ("read-only", True)])
async def test_target_session_attributes(pair: Pair, attributes: str, in_recovery: bool) -> None:
    """read-write selects the primary and read-only a standby, although the service's own sessions never can write."""
    async with open_database(pair.url(attributes), _LIMITS) as database:
        assert await _in_recovery(database) is in_recovery
