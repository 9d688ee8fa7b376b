"""Timeouts of sessions: those of the database and the role have no effect on reads, imports and migrations."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.connect.timeouts import SessionTimeouts
from service.postgres.database import open_database
from service.postgres.migration import migrate
from service.postgres.session import open_session
from tests.support.catalog import OWNER, Sql
from tests.support.limits import LIMITS

_SHORT_MS = 300
_LONG_S = 0.6


async def _set_timeouts(connection: Sql, database: str) -> None:
    """Give a database timeouts that are shorter than any of these tests."""
    names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
    if connection.get_server_version() >= (17,):
        names.append("transaction_timeout")
    for name in names:
        await connection.execute(f"ALTER DATABASE {database} SET {name} = {_SHORT_MS}")


async def test_reads(database_url: str, database_name: str, sql: Sql) -> None:
    """A read takes as long as BACKUPS_REQUEST_TIMEOUT allows."""
    await _set_timeouts(sql, database_name)
    async with open_database(database_url, LIMITS) as database:
        await database.fetch(f"SELECT pg_sleep({_LONG_S})")


async def test_imports(import_url: str, database_name: str, sql: Sql) -> None:
    """The session of an import survives slow statements, waits for locks, idle transactions and long transactions."""
    await _set_timeouts(sql, database_name)
    async with open_session(import_url) as connection, connection.transaction():
        await connection.execute(f"SELECT pg_sleep({_LONG_S})")
        await asyncio.sleep(_LONG_S)
        holder = sql.transaction()
        await holder.start()
        await sql.execute("LOCK TABLE backups")
        waiting = asyncio.ensure_future(connection.fetch("SELECT FROM backups"))
        done, _ = await asyncio.wait([waiting], timeout=_LONG_S)
        assert not done
        await holder.rollback()
        await waiting


async def test_migrations(postgres: EmbeddedPostgres, empty_database_url: str, sql: Sql) -> None:
    """A migration waits for a lock for as long as its own timeout allows."""
    database = empty_database_url.split("/")[3].partition("?")[0]
    holder = await asyncpg.connect(postgres.url(database, user=OWNER))
    await holder.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    await holder.execute("BEGIN; LOCK TABLE alembic_version")
    await _set_timeouts(sql, database)
    migration = asyncio.create_task(asyncio.to_thread(migrate, empty_database_url))
    done, _ = await asyncio.wait([migration], timeout=2 * _LONG_S)
    assert not done
    await holder.close()
    await migration


async def test_old_servers() -> None:
    """transaction_timeout is set only on servers that have it."""

    class Server:
        statements: list[str] = []  # noqa: RUF012

        def __init__(self, version: int) -> None:
            self.version = (version, 0)

        def get_server_version(self) -> tuple[int, int]:
            return self.version

        async def execute(self, statement: str) -> None:
            self.statements.append(statement)

    for version in (15, 16, 17, 18):
        await SessionTimeouts(statement=timedelta(seconds=1)).set_transaction_timeout(Server(version))  # type: ignore[arg-type]
    assert Server.statements == ["SET transaction_timeout = 0"] * 2


@pytest.mark.parametrize("timeout", [timedelta(0), timedelta(minutes=1), timedelta(hours=1)])
async def test_values(postgres: EmbeddedPostgres, timeout: timedelta) -> None:
    """A session has exactly the timeouts that it sets."""
    timeouts = SessionTimeouts(statement=timeout, lock=timeout, idle_in_transaction=timeout)
    connection = await asyncpg.connect(postgres.url("postgres"), server_settings=timeouts.server_settings)
    for name in timeouts.server_settings:
        assert await connection.fetchval(f"SELECT setting::bigint FROM pg_settings WHERE name = '{name}'") == timeout // timedelta(
            milliseconds=1
        )
    await connection.close()
