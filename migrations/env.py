"""How a migration runs: one transaction a step, with timeouts, under an advisory lock of the session.

Called by service/postgres/migration.py, which gives the database's URL; the `alembic` command itself serves to write new revisions
and to print their SQL.
"""

import asyncio
import time
from datetime import timedelta
from typing import Any

import asyncpg
from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from service.errors import SchemaError
from service.postgres.database import UNAVAILABLE
from service.postgres.hosts import connecting

# A step that waits for a lock stops every query that comes after it: it gives up soon, and is tried again. Not sooner: autovacuum lets
# go of a table once somebody has waited for deadlock_timeout, a second.
LOCK_TIMEOUT = timedelta(seconds=2)
STATEMENT_TIMEOUT = timedelta(hours=1)
CONNECT_TIMEOUT = timedelta(seconds=10)

# One `migrate` at a time in a database; the number has no meaning but to be ours.
ADVISORY_LOCK = 0x6261636B757073


def print_sql() -> None:
    context.configure(dialect_name="postgresql", literal_binds=True, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
    if roles := context.config.attributes.get("roles"):
        context.execute(grants(roles))


async def migrate() -> None:
    url = context.config.attributes["url"]
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: connect(url), poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate_connected)


async def connect(url: str) -> asyncpg.Connection:
    milliseconds = {
        "lock_timeout": LOCK_TIMEOUT // timedelta(milliseconds=1),
        "statement_timeout": STATEMENT_TIMEOUT // timedelta(milliseconds=1),
    }
    connection: asyncpg.Connection = await connecting(url, unavailable=UNAVAILABLE)(
        url,
        timeout=CONNECT_TIMEOUT.total_seconds(),
        server_settings={name: str(value) for name, value in milliseconds.items()} | {"application_name": "backup-service migrate"},
    )
    return connection


def migrate_connected(connection: Connection) -> None:
    await_lock(connection)
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
    if roles := context.config.attributes.get("roles"):
        connection.execute(text(grants(roles)))
        connection.commit()


def grants(roles: Any) -> str:
    """What the roles of `service.postgres.migration.Roles` may do, where they exist. MAINTAIN, for VACUUM, is new in PostgreSQL 17."""
    service, imports = roles
    return f"""
DO $$ BEGIN
  IF to_regclass('backups') IS NULL THEN
    RETURN;
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{service}') THEN
    GRANT SELECT ON backups, imports, alembic_version TO "{service}";
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{imports}') THEN
    GRANT SELECT, INSERT, UPDATE, DELETE ON backups, imports TO "{imports}";
    IF current_setting('server_version_num')::integer >= 170000 THEN
      GRANT MAINTAIN ON backups TO "{imports}";
    END IF;
  END IF;
END $$"""  # noqa: S608  # the settings admit no quotes in a name


def await_lock(connection: Connection) -> None:
    """Asks again and again: a session that waits in SQL would hold a snapshot, on which CREATE INDEX CONCURRENTLY waits in turn.

    A lock of the session, not of a transaction: it outlives the steps, and ends with the connection.
    """
    deadline = time.monotonic() + context.config.attributes["patience"].total_seconds()
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK}):
        connection.rollback()
        if time.monotonic() > deadline:
            raise SchemaError("another migration of this database has not ended")
        time.sleep(0.2)
    connection.commit()


if context.is_offline_mode():
    print_sql()
else:
    asyncio.run(migrate())
