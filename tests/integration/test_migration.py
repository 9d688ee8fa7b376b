"""Migrations: revisions, downgrades, concurrent migrations, locks, and the SQL of a dry run."""

import asyncio
import re
import subprocess
from datetime import timedelta

import asyncpg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from service.dev.embedded_postgres import EmbeddedPostgres
from service.errors import SchemaError
from service.postgres.database import open_database
from service.postgres.migration import create_index, downgrade, heads, migrate, migration_sql
from service.postgres.schema import REQUIRED_REVISION, present_revision
from tests.support.catalog import Sql
from tests.support.commands import RunCommand
from tests.support.eventually import eventually
from tests.support.limits import LIMITS


async def test_one_head() -> None:
    """There is one newest revision, and the code requires it."""
    assert heads() == [f"{REQUIRED_REVISION:04}"]


async def test_present_revision(database_url: str) -> None:
    """A migrated database has the revision that the code requires."""
    async with open_database(database_url, LIMITS) as database:
        assert await present_revision(database) == REQUIRED_REVISION


async def test_downgrade_and_upgrade(postgres: EmbeddedPostgres, empty_database_url: str) -> None:
    """A downgrade to the first revision removes everything, and an upgrade afterwards gives the same schema."""
    await asyncio.to_thread(migrate, empty_database_url)
    first = _schema(postgres, empty_database_url)
    assert "CREATE TABLE public.backups" in first

    await asyncio.to_thread(downgrade, empty_database_url, to="base")
    assert not re.search(r"(TABLE|FUNCTION|INDEX) \S*backup", _schema(postgres, empty_database_url))

    await asyncio.to_thread(migrate, empty_database_url)
    assert _schema(postgres, empty_database_url) == first


async def test_migrating_again_changes_nothing(postgres: EmbeddedPostgres, owner_url: str) -> None:
    """A second `migrate` of a database succeeds and changes nothing."""
    before = _schema(postgres, owner_url)
    await asyncio.to_thread(migrate, owner_url)
    assert _schema(postgres, owner_url) == before


async def test_concurrent_migrations(empty_database_url: str, command: RunCommand) -> None:
    """Several concurrent migrations all succeed: one migrates, and the others wait for it."""
    done = await asyncio.gather(*(command("migrate", BACKUPS_DATABASE_URL=empty_database_url) for _ in range(4)))
    assert [(each.status, each.stdout) for each in done] == [(0, "The schema is at revision head.\n")] * 4


async def test_waits_for_another_migration(empty_database_url: str) -> None:
    """A migration changes nothing while another session holds the lock of migrations, and fails with a clear error after its timeout."""
    holder = await asyncpg.connect(empty_database_url)
    await holder.execute("CREATE TABLE migration_lock ()")
    await holder.execute("BEGIN; LOCK TABLE migration_lock IN EXCLUSIVE MODE")

    with pytest.raises(SchemaError, match="another migration of this database has not finished within 0.5 s"):
        await asyncio.to_thread(migrate, empty_database_url, timeout=timedelta(seconds=0.5))
    assert await holder.fetchval("SELECT to_regclass('backups')") is None

    waiting = asyncio.create_task(asyncio.to_thread(migrate, empty_database_url))
    await holder.close()
    await waiting


_LOCKED = ("CREATE TABLE migration_lock ()", "BEGIN; LOCK TABLE migration_lock IN EXCLUSIVE MODE")
_CREATED = ("BEGIN; CREATE TABLE migration_lock ()",)
_LOCKED_STEP = ("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)", "BEGIN; LOCK TABLE alembic_version")


@pytest.mark.parametrize(
    ("held", "state"),
    [
        (_CREATED, "wait_event_type = 'Lock'"),  # waits for the transaction that creates the same table
        (_LOCKED, "query = 'ROLLBACK' AND state = 'idle' AND state_change > clock_timestamp() - interval '50 ms'"),  # sleeps for 0.2 s
        (_LOCKED_STEP, "wait_event_type = 'Lock'"),
    ],
    ids=["during a statement", "between statements", "during a step"],
)
async def test_lost_session(empty_database_url: str, held: tuple[str, ...], state: str) -> None:
    """A migration whose session is terminated, at any time, fails with a clear error."""
    holder = await asyncpg.connect(empty_database_url)
    for statement in held:
        await holder.execute(statement)
    waiting = asyncio.create_task(asyncio.to_thread(migrate, empty_database_url))
    observer = await asyncpg.connect(empty_database_url)
    session = "application_name = 'backup-service migrate' AND datname = current_database()"
    terminate = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {session} AND {state}"
    await eventually(lambda: observer.fetchval(terminate), 1)
    with pytest.raises(SchemaError, match="^the migration failed: the connection to PostgreSQL was lost$"):
        await waiting
    await observer.close()
    await holder.close()


async def test_lock_timeout(empty_database_url: str) -> None:
    """A step that waits too long for a lock times out, so that other queries can run, and is retried until the lock is free."""
    holder = await asyncpg.connect(empty_database_url)
    await holder.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    await holder.execute("BEGIN")
    await holder.execute("LOCK TABLE alembic_version")

    migration = asyncio.create_task(asyncio.to_thread(migrate, empty_database_url))
    observer = await asyncpg.connect(empty_database_url)
    for is_waiting in (True, False):
        await eventually(lambda: observer.fetchval("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"), is_waiting, timeout_s=30)
    await observer.close()
    await holder.close()
    await migration


async def test_sql(postgres: EmbeddedPostgres, owner_url: str, empty_database_url: str) -> None:
    """The SQL of a dry run creates the same schema as the migration."""
    psql = postgres.program("psql")
    subprocess.run([psql, "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database_url], input=migration_sql(), text=True, check=True)
    assert _schema(postgres, empty_database_url) == _schema(postgres, owner_url)


async def test_index_of_an_interrupted_step(postgres: EmbeddedPostgres, database_name: str, sql: Sql) -> None:
    """`create_index` replaces an invalid index, and the timeouts of the session are in force again afterwards."""
    await sql.execute("CREATE INDEX backups_note ON backups (name)")
    await sql.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'backups_note'::regclass")
    url = postgres.url(database_name)
    settings = {"lock_timeout": "2s", "statement_timeout": "3s"}
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url, server_settings=settings), poolclass=NullPool
    )

    def create(connection: Connection) -> tuple[str, str]:
        context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
        with Operations.context(context), context.begin_transaction(_per_migration=True):
            create_index("backups_note", "ON backups (folder_id)")
        lock, statement = (connection.execute(text(f"SHOW {name}_timeout")).scalar_one() for name in ("lock", "statement"))
        return lock, statement

    async with engine.connect() as connection:
        assert await connection.run_sync(create) == ("2s", "3s")
    [row] = await sql.fetch(
        "SELECT indisvalid, pg_get_indexdef(indexrelid) AS definition FROM pg_index WHERE indexrelid = 'backups_note'::regclass"
    )
    assert (row["indisvalid"], row["definition"].partition(" USING ")[2]) == (True, "btree (folder_id)")


async def test_unknown_revision(empty_database_url: str) -> None:
    """A revision that does not exist is a clear error."""
    with pytest.raises(SchemaError, match="9999"):
        await asyncio.to_thread(migrate, empty_database_url, to="9999")
    with pytest.raises(SchemaError, match="9999"):
        migration_sql(to="9999")


async def test_no_database() -> None:
    """The error names the host that cannot be reached."""
    with pytest.raises(SchemaError, match="cannot connect to localhost:1: "):
        await asyncio.to_thread(migrate, "postgresql://localhost:1/none")


async def test_encoding_of_the_database(postgres: EmbeddedPostgres) -> None:
    """A database in another encoding than UTF8 is rejected: the encoder copies the bytes of texts."""
    connection = await asyncpg.connect(postgres.url("postgres"))
    await connection.execute("CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(SchemaError, match="needs a database with the encoding UTF8, not LATIN1"):
            await asyncio.to_thread(migrate, postgres.url("latin1"))
    finally:
        await connection.execute("DROP DATABASE latin1 WITH (FORCE)")
        await connection.close()


def _schema(postgres: EmbeddedPostgres, url: str) -> str:
    dump = subprocess.run([postgres.program("pg_dump"), "--schema-only", "-d", url], capture_output=True, text=True, check=True).stdout
    # A dump begins and ends with a random key.
    lines = [line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict", "--"))]
    return "\n".join(lines)
