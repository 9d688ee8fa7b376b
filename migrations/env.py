"""Runs migrations: each step in its own transaction with timeouts, while a second connection holds the lock of migrations.

Called by service/postgres/migration.py, which passes the database's URL. The `alembic` command itself only writes new revisions and prints
their SQL.
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
from service.postgres.connect.hosts import Connect, Hosts
from service.postgres.connect.timeouts import SessionTimeouts

# A step that waits for a lock blocks every later query of that table, so its lock timeout is short and the step is retried. It is longer
# than deadlock_timeout (1 s), after which autovacuum releases a table to a waiting session.
TIMEOUTS = SessionTimeouts(statement=timedelta(hours=1), lock=timedelta(seconds=2))
CONNECT_TIMEOUT_S = 10.0
POLL_PERIOD_S = 0.2

# A table and not an advisory lock: by default, every role that can connect may take any advisory lock. Only the owner may lock this table.
CREATE_LOCK = "CREATE TABLE IF NOT EXISTS migration_lock ()"
# Not ACCESS EXCLUSIVE: pg_dump must be able to read the table. NOWAIT, because `migration_lock` polls.
TAKE_LOCK = "BEGIN; LOCK TABLE migration_lock IN EXCLUSIVE MODE NOWAIT"

# Revokes the privileges of all other roles on these tables, so that a role that is no longer in the settings loses them. Privileges on the
# database itself only change if the session's role owns it. MAINTAIN, for VACUUM, is new in PostgreSQL 17.
GRANTS = """
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
        'backups'::regclass, 'imports'::regclass, 'attempts'::regclass, 'freshness'::regclass, 'cluster_locks'::regclass,
        'alembic_version'::regclass)
      AND grantee <> relowner
  LOOP
    EXECUTE 'REVOKE ALL ON backups, imports, attempts, freshness, cluster_locks, alembic_version FROM ' || role.name;
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
    GRANT SELECT, UPDATE ON cluster_locks TO "{imports}";
    IF current_setting('server_version_num')::integer >= 170000 THEN
      GRANT MAINTAIN ON backups TO "{imports}";
    END IF;
    IF owns_database THEN
      EXECUTE 'GRANT CONNECT, TEMPORARY ON DATABASE ' || database || ' TO "{imports}"';
    END IF;
  END IF;
END $$"""


def print_sql() -> None:
    context.configure(dialect_name="postgresql", literal_binds=True, transaction_per_migration=True)
    context.execute(CREATE_LOCK)
    with context.begin_transaction():
        context.run_migrations()
    if roles := context.config.attributes.get("roles"):
        context.execute(grants(roles))


async def migrate() -> None:
    hosts = Hosts(parse_database_url(context.config.attributes["url"]))
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: open_session(hosts.connect), poolclass=NullPool)
    async with migration_lock(hosts.connect), engine.connect() as connection:
        await connection.run_sync(migrate_connected)


async def open_session(connect: Connect) -> asyncpg.Connection:
    settings = TIMEOUTS.server_settings | {"application_name": "backup-service migrate"}
    connection = await connect(timeout=CONNECT_TIMEOUT_S, server_settings=settings)
    await TIMEOUTS.set_transaction_timeout(connection)
    return connection


@contextlib.asynccontextmanager
async def migration_lock(connect: Connect) -> AsyncIterator[None]:
    """Hold the lock of migrations in a transaction of its own, because each step has another transaction.

    The lock is polled. A session that waits in SQL may hold a snapshot, and CREATE INDEX CONCURRENTLY of the other migration would wait
    for its end.

    Raises:
        SchemaError: another migration has held the lock for too long.
    """
    timeout: timedelta = context.config.attributes["timeout"]
    deadline = time.monotonic() + timeout.total_seconds()
    connection = await open_session(connect)
    try:
        while not await take_lock(connection):
            if time.monotonic() > deadline:
                raise SchemaError(f"another migration of this database has not finished within {timeout.total_seconds():g} s")
            await asyncio.sleep(POLL_PERIOD_S)
        yield
    finally:
        connection.terminate()


async def take_lock(connection: asyncpg.Connection) -> bool:
    """Return False if another migration holds the lock, or is creating its table."""
    try:
        await connection.execute(CREATE_LOCK)
        await connection.execute(TAKE_LOCK)
    except (
        asyncpg.LockNotAvailableError,
        # CREATE TABLE IF NOT EXISTS fails with each of these if another session creates the table, or its row type, at the same time.
        asyncpg.UniqueViolationError,
        asyncpg.DuplicateTableError,
        asyncpg.DuplicateObjectError,
    ):
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
    """Return the SQL that grants the roles of `service.postgres.migration.Roles` their privileges, if they exist."""
    service, imports = roles
    return GRANTS.format(service=service, imports=imports)  # the settings reject names with quotes


if context.is_offline_mode():
    print_sql()
else:
    asyncio.run(migrate())
