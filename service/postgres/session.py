"""What every write has: a connection of its own, one lock a cluster, VACUUM after many rows."""

import contextlib
from collections.abc import AsyncIterator

import asyncpg

from service.database_url import parse_database_url
from service.errors import CatalogNotWritable, CatalogUnavailable, ImportRefused
from service.postgres.database import UNAVAILABLE
from service.postgres.hosts import connecting

# After so many rows, VACUUM: without the visibility map that it writes, a page is no index-only scan.
_VACUUM_FROM = 1000

_CONNECT_TIMEOUT = 10.0  # seconds
_LOCK_TIMEOUT_S = 600  # for another write of the same cluster

# A listing of a hundred thousand entries is sorted in memory, several times over.
_WORK_MEM = "64MB"

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('backups import ' || $1, 0))"


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """
    Raises:
        CatalogUnavailable: PostgreSQL is gone, going or too slow.
        CatalogNotWritable: the role may not do this.
        ImportRefused: another cluster's import was faster.
    """
    try:
        connect = connecting(parse_database_url(url), unavailable=UNAVAILABLE)
        connection: asyncpg.Connection = await connect(
            timeout=_CONNECT_TIMEOUT, server_settings={"application_name": "backup-service import", "work_mem": _WORK_MEM}
        )
        try:
            yield connection
        finally:
            with contextlib.suppress(*UNAVAILABLE):  # what was done stands, and so does what was raised
                await connection.close(timeout=_CONNECT_TIMEOUT)
    except asyncpg.UniqueViolationError as exc:
        raise ImportRefused("another cluster's import has just taken one of these ids: run the import again") from exc
    except (asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError) as exc:
        raise CatalogNotWritable from exc
    except UNAVAILABLE as exc:
        raise CatalogUnavailable(f"the database cannot be used: {exc}") from exc


async def lock_cluster(connection: asyncpg.Connection, cluster_id: str) -> None:
    """Until the transaction ends, no other write of this cluster goes on."""
    await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'")
    await connection.fetch(_LOCK, cluster_id)


async def vacuum_after(connection: asyncpg.Connection, written: int) -> None:
    """After a write of many rows."""
    if written >= _VACUUM_FROM:
        with contextlib.suppress(*UNAVAILABLE):  # the write stands; autovacuum will come by
            await connection.execute("VACUUM (ANALYZE) backups")
