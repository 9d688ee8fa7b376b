"""Sessions that write: their connection, the lock of a cluster, and VACUUM after many rows."""

import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Literal

import asyncpg

from service.database_url import parse_database_url
from service.errors import CatalogNotWritable, CatalogUnavailable, ImportRejected
from service.postgres.connect.hosts import Hosts
from service.postgres.connect.timeouts import SessionTimeouts
from service.postgres.errors import UNAVAILABLE, cause, unavailable

# Rows after which to VACUUM: without the visibility map that it writes, reading a page is not an index-only scan.
_VACUUM_FROM = 1000

_CONNECT_TIMEOUT_S = 10.0
_LOCK_TIMEOUT_S = 600  # for another write of the same cluster
_TIMEOUTS = SessionTimeouts(statement=timedelta(hours=1))

# Sorts a listing of a hundred thousand entries in memory, several times.
_WORK_MEM = "64MB"

# Rows and not advisory locks: by default, every role that can connect may take any advisory lock. Only the role of imports may lock
# these rows.
# Clusters whose ids have the same hash wait for each other.
_LOCK_CLUSTER = "SELECT FROM cluster_locks WHERE number = hashtextextended($1, 0) & 255 FOR UPDATE"


@contextlib.asynccontextmanager
async def open_session(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection for writing.

    Raises:
        CatalogUnavailable: PostgreSQL cannot be used now; the message is the cause.
        CatalogNotWritable: the role may not do this, or the server is a standby.
        ImportRejected: another cluster's import has taken one of the ids.
    """
    try:
        connection = await _connect(url)
        try:
            yield connection
        finally:
            with contextlib.suppress(*UNAVAILABLE):  # a failed close changes neither the commit nor the error
                await connection.close(timeout=_CONNECT_TIMEOUT_S)
    except asyncpg.UniqueViolationError as exc:
        raise ImportRejected("another cluster's import has just taken one of these ids: run the import again") from exc
    except (asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError) as exc:
        raise CatalogNotWritable(f"the role of BACKUPS_DATABASE_URL may not write to the catalog: {cause(exc)}") from exc
    except UNAVAILABLE as exc:
        raise unavailable(exc) from exc


async def _connect(url: str) -> asyncpg.Connection:
    settings = _TIMEOUTS.server_settings | {"application_name": "backup-service import", "work_mem": _WORK_MEM}
    connection = await Hosts(parse_database_url(url)).connect(timeout=_CONNECT_TIMEOUT_S, server_settings=settings)
    await _TIMEOUTS.set_transaction_timeout(connection)
    return connection


async def lock_cluster(connection: asyncpg.Connection, cluster_id: str) -> None:
    """Block other writes of this cluster until the transaction ends.

    Raises:
        CatalogUnavailable: the row that is locked for this cluster does not exist.
    """
    await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'")
    if not await connection.fetch(_LOCK_CLUSTER, cluster_id):
        raise CatalogUnavailable("rows of the table cluster_locks are missing: it must have the numbers 0 to 255")


@contextlib.asynccontextmanager
async def avoid_joins(connection: asyncpg.Connection, *kinds: Literal["nestloop", "hashjoin", "mergejoin"]) -> AsyncIterator[None]:
    """Run the block's queries, within a transaction, without these kinds of joins.

    PostgreSQL has no statistics of rows that the transaction wrote. It expects a few of them, and a nested loop would scan a whole
    table for each.
    """
    for kind in kinds:
        await connection.execute(f"SET LOCAL enable_{kind} = off")
    yield
    for kind in kinds:
        await connection.execute(f"SET LOCAL enable_{kind} = on")


async def vacuum_after(connection: asyncpg.Connection, written: int) -> None:
    """Run VACUUM if many rows were written."""
    if written >= _VACUUM_FROM:
        with contextlib.suppress(*UNAVAILABLE):  # the write is committed, and autovacuum follows
            await connection.execute("VACUUM (ANALYZE) backups")
