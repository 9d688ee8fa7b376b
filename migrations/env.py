"""How a migration runs: one transaction a step, with timeouts, while a second connection holds the lock of migrations.

Called by service/postgres/migration.py, which passes the database's URL. The `alembic` command itself only serves to write new revisions
and to print their SQL.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from service.database_url import parse_database_url
from service.errors import SchemaError
from service.postgres.database import UNAVAILABLE, Connect
from service.postgres.hosts import connecting

# A step that waits for a lock stops every query that comes after it: it gives up soon, and is tried again. Not sooner: autovacuum lets
# go of a table once somebody has waited for deadlock_timeout, a second.
LOCK_TIMEOUT = timedelta(seconds=2)
STATEMENT_TIMEOUT = timedelta(hours=1)
CONNECT_TIMEOUT = timedelta(seconds=10)
MILLISECOND = timedelta(milliseconds=1)

# A table and not an advisory lock: every role that can connect may take any advisory lock, but only the owner may lock this table.
CREATE_LOCK = "CREATE TABLE IF NOT EXISTS migration_lock ()"
# Not ACCESS EXCLUSIVE: pg_dump must be able to read the table. Not a wait in SQL: see `migration_lock`.
TAKE_LOCK = "BEGIN; LOCK TABLE migration_lock IN EXCLUSIVE MODE NOWAIT"


def print_sql() -> None:
    context.configure(dialect_name="postgresql", literal_binds=True, transaction_per_migration=True)
    context.execute(CREATE_LOCK)
    with context.begin_transaction():
        context.run_migrations()
    if roles := context.config.attributes.get("roles"):
        context.execute(grants(roles))


async def migrate() -> None:
    connect = connecting(parse_database_url(context.config.attributes["url"]), unavailable=UNAVAILABLE)
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: open_session(connect), poolclass=NullPool)
    async with migration_lock(connect), engine.connect() as connection:
        await connection.run_sync(migrate_connected)


async def open_session(connect: Connect, **settings: str) -> asyncpg.Connection:
    timeouts = {"lock_timeout": LOCK_TIMEOUT, "statement_timeout": STATEMENT_TIMEOUT}
    connection: asyncpg.Connection = await connect(
        timeout=CONNECT_TIMEOUT.total_seconds(),
        server_settings={name: str(value // MILLISECOND) for name, value in timeouts.items()}
        | {"application_name": "backup-service migrate"}
        | settings,
    )
    return connection


@contextlib.asynccontextmanager
async def migration_lock(connect: Connect) -> AsyncIterator[None]:
    """Hold the lock of migrations in a transaction of its own, since each step is a transaction.

    Polls: a session that waits in SQL may hold a snapshot, for which CREATE INDEX CONCURRENTLY of the other migration would wait.

    Raises:
        SchemaError: another migration has held the lock for too long.
    """
    deadline = time.monotonic() + context.config.attributes["patience"].total_seconds()
    connection = await open_session(connect, idle_in_transaction_session_timeout="0")
    try:
        while not await take_lock(connection):
            if time.monotonic() > deadline:
                raise SchemaError("another migration of this database has not ended")
            await asyncio.sleep(0.2)
        yield
    finally:
        connection.terminate()


async def take_lock(connection: asyncpg.Connection) -> bool:
    """Return False if another migration holds the lock, or creates its table just now."""
    try:
        await connection.execute(CREATE_LOCK)
        await connection.execute(TAKE_LOCK)
    except (asyncpg.LockNotAvailableError, asyncpg.UniqueViolationError, asyncpg.DuplicateTableError):
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK")
        return False
    return True


def migrate_connected(connection: Connection) -> None:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
    if roles := context.config.attributes.get("roles"):
        connection.execute(text(grants(roles)))
        connection.commit()


def grants(roles: Any) -> str:
    """Return the SQL that grants the roles of `service.postgres.migration.Roles` what they need, if they exist.

    Rights of all other roles on these tables are revoked, so that a role that the settings no longer name keeps none. The rights on the
    database itself are only changed by its owner. MAINTAIN, for VACUUM, is new in PostgreSQL 17.
    """
    service, imports = roles
    return f"""
DO $$ DECLARE
  database text := quote_ident(current_database());  -- not format(): Alembic prints its percent sign twice
  role record;
  owns_database boolean;
BEGIN
  IF to_regclass('backups') IS NULL THEN
    RETURN;
  END IF;
  SELECT pg_has_role(current_user, datdba, 'USAGE') INTO owns_database FROM pg_database WHERE datname = current_database();
  FOR role IN
    SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS name, grantee = 0 AS is_public
    FROM pg_class, aclexplode(relacl)
    WHERE pg_class.oid IN (
        'backups'::regclass, 'imports'::regclass, 'attempts'::regclass, 'freshness'::regclass, 'alembic_version'::regclass)
      AND grantee <> relowner
  LOOP
    EXECUTE 'REVOKE ALL ON backups, imports, attempts, freshness, alembic_version FROM ' || role.name;
    IF owns_database AND NOT role.is_public THEN
      EXECUTE 'REVOKE CONNECT, TEMPORARY ON DATABASE ' || database || ' FROM ' || role.name;
    END IF;
  END LOOP;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{service}') THEN
    GRANT SELECT ON backups, imports, attempts, freshness, alembic_version TO "{service}";
    IF owns_database THEN
      EXECUTE 'GRANT CONNECT ON DATABASE ' || database || ' TO "{service}"';
    END IF;
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{imports}') THEN
    GRANT SELECT, INSERT, UPDATE, DELETE ON backups, imports, attempts, freshness TO "{imports}";
    IF current_setting('server_version_num')::integer >= 170000 THEN
      GRANT MAINTAIN ON backups TO "{imports}";
    END IF;
    IF owns_database THEN
      EXECUTE 'GRANT CONNECT, TEMPORARY ON DATABASE ' || database || ' TO "{imports}"';
    END IF;
  END IF;
END $$"""  # noqa: S608  # the settings admit no quotes in a name


if context.is_offline_mode():
    print_sql()
else:
    asyncio.run(migrate())
