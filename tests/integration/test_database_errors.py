"""Causes of database errors, each one provoked: in the exceptions, in the commands and in the log of a server."""

import asyncio
import json

import asyncpg
import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from service.errors import CatalogUnavailable
from service.observability import logs
from service.postgres.catalog import Catalog
from service.postgres.database import Limits, open_database
from service.postgres.migration import Roles
from tests.support.catalog import Sql
from tests.support.commands import RunCommand
from tests.support.eventually import eventually
from tests.support.limits import LIMITS
from tests.support.proxy import listening, proxied
from tests.support.server import StartServer

_SECRET = "hunter2"


async def _cause(url: str, query: str = "SELECT 1", limits: Limits = LIMITS) -> str:
    """Return the cause with which a query fails."""
    async with open_database(url, limits) as database:
        with pytest.raises(CatalogUnavailable) as caught:
            await database.fetch(query)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("postgresql://u@127.0.0.1:1/d", "cannot connect to 127.0.0.1:1: connection refused"),
        ("postgresql://u@backups.invalid/d?sslmode=disable", "cannot connect to backups.invalid:5432: the host name was not found"),
        ("postgresql://u@/d?host=/nowhere", "cannot connect to /nowhere/.s.PGSQL.5432: the socket does not exist"),
        (
            "postgresql://u@127.0.0.1:1,127.0.0.1:2/d",
            "cannot connect to 127.0.0.1:1: connection refused; cannot connect to 127.0.0.1:2: connection refused",
        ),
    ],
)
async def test_unreachable_hosts(url: str, cause: str) -> None:
    """The cause names each host and port, with the reason why it cannot be reached."""
    assert await _cause(url) == cause


async def test_unresponsive_host() -> None:
    """The cause of a timeout names the host and the time."""

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with listening(ignore) as port:
        cause = await _cause(f"postgresql://u@127.0.0.1:{port}/d?connect_timeout=1")
    assert cause == f"cannot connect to 127.0.0.1:{port}: no response within 1 s"


async def test_unknown_role_and_database(postgres: EmbeddedPostgres, database_name: str) -> None:
    """The cause names a role or a database that does not exist."""
    socket = f"{postgres.sockets}/.s.PGSQL.5432"
    assert await _cause(postgres.url(database_name, user="absent")) == f'{socket} rejected role "absent": role "absent" does not exist'
    assert await _cause(postgres.url("absent")) == f'database "absent" does not exist on {socket}'


async def test_privilege_to_connect(postgres: EmbeddedPostgres, database_url: str, database_name: str, sql: Sql) -> None:
    """The cause is a missing privilege to connect, or a connection limit."""
    socket = f"{postgres.sockets}/.s.PGSQL.5432"
    await sql.execute(f"ALTER DATABASE {database_name} CONNECTION LIMIT 0")
    assert await _cause(database_url) == f'{socket} has no connection left: too many connections for database "{database_name}"'
    await sql.execute(f"ALTER DATABASE {database_name} CONNECTION LIMIT -1")
    await sql.execute(f"REVOKE CONNECT ON DATABASE {database_name} FROM PUBLIC, {Roles().service}")
    assert await _cause(database_url) == (
        f'role "{Roles().service}" may not connect to database "{database_name}" on {socket}: '
        f'permission denied for database "{database_name}"'
    )


async def test_target_session_attributes(postgres: EmbeddedPostgres, database_url: str) -> None:
    """The cause names a host that is not of the required kind."""
    socket = f"{postgres.sockets}/.s.PGSQL.5432"
    assert await _cause(f"{database_url}&target_session_attrs=standby") == f"{socket} does not match target_session_attrs=standby"


async def test_no_tls(postgres: EmbeddedPostgres, database_name: str) -> None:
    """The cause names a server that does not offer TLS."""
    async with proxied(postgres.sockets / ".s.PGSQL.5432") as proxy:
        cause = await _cause(f"postgresql://u@127.0.0.1:{proxy.port}/{database_name}?sslmode=require")
    assert cause == f"TLS with 127.0.0.1:{proxy.port} failed: the server does not offer TLS, or ended the negotiation"


_STATEMENT = "SELECT folder_id, wire FROM backups WHERE id = ''"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            "REVOKE SELECT ON backups FROM backups_service",
            "permission denied for table backups: `backup-service migrate` grants access to BACKUPS_SERVICE_ROLE and BACKUPS_IMPORT_ROLE",
        ),
        (
            "ALTER TABLE backups RENAME wire TO encoded",
            'the schema does not match this release (column "wire" does not exist): run `backup-service migrate`',
        ),
        (
            "ALTER TABLE backups RENAME TO moved",
            'the schema is not migrated (relation "backups" does not exist): run `backup-service migrate`',
        ),
    ],
)
async def test_schema(
    database_url: str, sql: Sql, start_server: StartServer, capsys: pytest.CaptureFixture[str], change: str, cause: str
) -> None:
    """A missing privilege, column or table is the cause of failed statements, and the reason in the log why a server is not ready."""
    async with start_server() as server:
        await eventually(lambda: server.health.serving, True)
        capsys.readouterr()
        await sql.execute(change)
        assert await _cause(database_url, _STATEMENT) == cause
        await eventually(lambda: server.health.serving, False)
        logs.flush()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert cause in [error.get("message") for line in lines for error in line.get("error", [])]


async def test_probe_runs_every_statement(database_url: str, sql: Sql) -> None:
    """The probe of the catalog fails if any column that a call needs is missing."""
    async with open_database(database_url, LIMITS) as database:
        await Catalog(database).probe()
        for column in ("id", "folder_id", "created_at", "source_cluster_id", "wire"):
            await sql.execute(f"ALTER TABLE backups RENAME {column} TO renamed")
            with pytest.raises(CatalogUnavailable, match=f'column "?{column}"? does not exist'):
                await Catalog(database).probe()
            await sql.execute(f"ALTER TABLE backups RENAME renamed TO {column}")
        await Catalog(database).probe()


@pytest.mark.parametrize(
    ("sqlstate", "cause"),
    [
        ("08006", "the connection to PostgreSQL was lost"),
        ("25P03", "PostgreSQL ended the session: it exceeded idle_in_transaction_session_timeout"),
        ("25P04", "PostgreSQL ended the session: the transaction exceeded transaction_timeout"),
        ("40001", "the statement was cancelled: it conflicts with another transaction, or with recovery on a standby"),
        ("40P01", "the statement was cancelled: it conflicts with another transaction, or with recovery on a standby"),
        ("53000", "PostgreSQL has run out of memory, disk space or connections"),
        ("53100", "the disk of PostgreSQL is full"),
        ("53200", "PostgreSQL has run out of memory, disk space or connections"),
        ("55000", "PostgreSQL is recovering, and accepts no statements yet"),
        ("55P03", "a lock was not granted within lock_timeout"),
        ("57014", "the statement was cancelled: it exceeded statement_timeout, or an administrator cancelled it"),
        ("57P01", "PostgreSQL is shutting down, or an administrator ended the session"),
        ("57P02", "PostgreSQL ended all sessions, because one of its processes crashed"),
        ("57P03", "PostgreSQL is starting up, shutting down or recovering"),
        ("57P04", "an administrator ended the statement or the session"),
        ("57P05", "PostgreSQL ended the session: it exceeded idle_session_timeout"),
    ],
)
async def test_sqlstates(database_url: str, sqlstate: str, cause: str) -> None:
    """Each SQLSTATE that a running statement can return has its cause, without the text of the server's message."""
    raised = f"DO $$ BEGIN RAISE EXCEPTION '{_SECRET}' USING ERRCODE = '{sqlstate}'; END $$"
    assert await _cause(database_url, raised) == cause


@pytest.mark.parametrize("sqlstate", ["22012", "23505", "25006", "42601", "P0001", "XX000"])
async def test_other_errors(database_url: str, sqlstate: str) -> None:
    """Errors that only a bug of this code can cause are not reported as an unavailable catalog."""
    async with open_database(database_url, LIMITS) as database:
        with pytest.raises(asyncpg.PostgresError) as caught:
            await database.fetch(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{sqlstate}'; END $$")
    assert caught.value.sqlstate == sqlstate


async def test_terminated_session(database_url: str, sql: Sql) -> None:
    """A session that an administrator ends during a statement has that cause, or that the connection was lost."""
    async with open_database(database_url, LIMITS) as database:
        running = asyncio.ensure_future(database.fetch("SELECT pg_sleep(20)"))
        terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(20)'"
        await eventually(lambda: sql.fetchval(terminate), 1)
        with pytest.raises(
            CatalogUnavailable,
            match="the connection to PostgreSQL was lost|PostgreSQL is shutting down, or an administrator ended the session",
        ):
            await running


@pytest.mark.parametrize(
    ("arguments", "name", "cause"),
    [
        (["status"], "absent", 'database "absent" does not exist on '),
        (["migrate"], "absent", 'database "absent" does not exist on '),
        (["import", "walg", "--folder-id", "f", "--cluster-id", "c"], "absent", 'database "absent" does not exist on '),
        (["status"], "", 'the schema is not migrated (relation "imports" does not exist): run `backup-service migrate`'),
        (["import", "walg", "--folder-id", "f", "--cluster-id", "c"], "", "the schema is not migrated (relation "),
    ],
)
async def test_commands(command: RunCommand, empty_database_url: str, arguments: list[str], name: str, cause: str) -> None:
    """A command prints the cause in one line, without a traceback."""
    authority, _, rest = empty_database_url.removeprefix("postgresql://").partition("/")
    url = f"postgresql://{authority}/{name}?{rest.partition('?')[2]}" if name else empty_database_url
    done = await command(*arguments, stdin=b"[]", BACKUPS_DATABASE_URL=url)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith(f"backup-service: {cause}")
    assert done.stderr.count("\n") == 1
