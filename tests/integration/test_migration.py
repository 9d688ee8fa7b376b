"""Migrations: one head, down and up again, twice at once, under a lock, and as SQL for people."""

import asyncio
import contextlib
import re
import subprocess
from collections.abc import AsyncGenerator
from datetime import timedelta

import asyncpg
import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from service.errors import SchemaError
from service.postgres.database import Limits, open_database
from service.postgres.migration import downgrade, heads, migrate, migration_sql
from service.postgres.schema import REQUIRED_REVISION, present_revision
from tests.support.commands import RunCommand

_SECONDS = timedelta(seconds=3)
_LIMITS = Limits(pool_size=1, connect=_SECONDS, acquire=_SECONDS, statement=_SECONDS, max_age=timedelta(hours=1))


async def test_one_head_which_this_code_requires() -> None:
    """There is one newest revision, and it is the one that the code requires."""
    assert heads() == [f"{REQUIRED_REVISION:04}"]


async def test_present_revision(database_url: str) -> None:
    """A migrated database has the revision required."""
    async with open_database(database_url, _LIMITS) as database:
        assert await present_revision(database) == REQUIRED_REVISION


async def test_down_and_up_again(postgres: EmbeddedPostgres, empty_database_url: str) -> None:
    """Taking all steps back leaves nothing behind, and they can be taken again, to the same schema."""
    await asyncio.to_thread(migrate, empty_database_url)
    first = _schema(postgres, empty_database_url)
    assert "CREATE TABLE public.backups" in first

    await asyncio.to_thread(downgrade, empty_database_url, to="base")
    assert not re.search(r"(TABLE|FUNCTION|INDEX) \S*backup", _schema(postgres, empty_database_url))

    await asyncio.to_thread(migrate, empty_database_url)
    assert _schema(postgres, empty_database_url) == first


async def test_migrating_again_changes_nothing(postgres: EmbeddedPostgres, owner_url: str) -> None:
    """A second `migrate` of a database is a success that does nothing."""
    before = _schema(postgres, owner_url)
    await asyncio.to_thread(migrate, owner_url)
    assert _schema(postgres, owner_url) == before


async def test_twice_at_once(empty_database_url: str, command: RunCommand) -> None:
    """Of several migrations that begin together, all succeed: one works, the others wait and find it done."""
    done = await asyncio.gather(*(command("migrate", BACKUPS_DATABASE_URL=empty_database_url) for _ in range(4)))
    assert [(each.status, each.stdout) for each in done] == [(0, "The schema is at revision head.\n")] * 4


async def test_waits_for_another_migration(empty_database_url: str) -> None:
    """While another session holds the lock of migrations, nothing happens; then it does, or its timeout is a clear error."""
    holder = await asyncpg.connect(empty_database_url)
    await holder.execute("CREATE TABLE migration_lock ()")
    await holder.execute("BEGIN; LOCK TABLE migration_lock IN EXCLUSIVE MODE")

    with pytest.raises(SchemaError, match="another migration of this database has not finished within 0.5 s"):
        await asyncio.to_thread(migrate, empty_database_url, timeout=timedelta(seconds=0.5))
    assert await holder.fetchval("SELECT to_regclass('backups')") is None

    waiting = asyncio.create_task(asyncio.to_thread(migrate, empty_database_url))
    await holder.close()
    await waiting


async def test_a_lock_that_is_held_for_long_is_tried_again(empty_database_url: str) -> None:
    """A step that cannot have its lock gives up, lets others pass, and succeeds once the lock is free."""
    holder = await asyncpg.connect(empty_database_url)
    await holder.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    await holder.execute("BEGIN")
    await holder.execute("LOCK TABLE alembic_version")

    migration = asyncio.create_task(asyncio.to_thread(migrate, empty_database_url))
    async with asyncio.timeout(60), contextlib.aclosing(_lock_waits(empty_database_url)) as waits:
        await anext(waiting async for waiting in waits if waiting)
        await anext(waiting async for waiting in waits if not waiting)
    await holder.close()
    await migration


async def test_sql_for_people(postgres: EmbeddedPostgres, owner_url: str, empty_database_url: str) -> None:
    """The SQL that a dry run prints makes the very schema that the migration makes."""
    psql = postgres.program("psql")
    subprocess.run([psql, "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database_url], input=migration_sql(), text=True, check=True)
    assert _schema(postgres, empty_database_url) == _schema(postgres, owner_url)


async def test_unknown_revision(empty_database_url: str) -> None:
    """A revision that does not exist is a clear error."""
    with pytest.raises(SchemaError, match="9999"):
        await asyncio.to_thread(migrate, empty_database_url, to="9999")
    with pytest.raises(SchemaError, match="9999"):
        migration_sql(to="9999")


async def test_no_database() -> None:
    """A database that cannot be reached is a clear error."""
    with pytest.raises(SchemaError, match="cannot connect to localhost:1: "):
        await asyncio.to_thread(migrate, "postgresql://localhost:1/none")


async def test_a_database_that_is_not_utf8(postgres: EmbeddedPostgres) -> None:
    """A database in another encoding is refused: the encoder's texts are bytes of it."""
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
    # A dump begins and ends with a key of its own; Alembic's own table stays when all steps are taken back.
    lines = [line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict", "--"))]
    return "\n".join(lines)


async def _lock_waits(url: str) -> AsyncGenerator[int, None]:
    """How many sessions wait for a lock, again and again."""
    connection = await asyncpg.connect(url)
    try:
        while True:
            yield await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
            await asyncio.sleep(0.02)
    finally:
        await connection.close()
