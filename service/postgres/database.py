"""Read-only access to the catalog's database. asyncpg's errors become `CatalogUnavailable` here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from service.database_url import DatabaseUrl, parse_database_url
from service.errors import ConnectFailed
from service.postgres.connect.hosts import Connect, Hosts
from service.postgres.connect.replication import connect_unless_lagging
from service.postgres.connect.timeouts import SessionTimeouts
from service.postgres.errors import UNAVAILABLE, is_timeout, unavailable
from service.postgres.pool import Pool

if TYPE_CHECKING:  # OpenTelemetry is optional
    from service.observability.tracing import Tracing

_Trace: TypeAlias = Callable[[str], AbstractContextManager[Callable[[], None]]]


def _ignore() -> None:
    pass


_UNTRACED: AbstractContextManager[Callable[[], None]] = contextlib.nullcontext(_ignore)


def _untraced(query: str) -> AbstractContextManager[Callable[[], None]]:
    return _UNTRACED


# In asyncpg, read-write and read-only test default_transaction_read_only, which the service sets itself. Therefore test the server's role.
_TARGET_SESSION_ATTRIBUTES = {"read-write": SessionAttribute.primary, "read-only": SessionAttribute.standby}

_STATEMENT_CACHE_SIZE = 100  # per connection; asyncpg's default

_PASSWORD_CHANGE_S = 1.0


class Limits(NamedTuple):
    """Size and timeouts of a pool."""

    pool_size: int
    connect: timedelta
    """For one host."""
    acquire: timedelta
    """For a connection of the pool, and for PostgreSQL to cancel the query of a cancelled call."""
    statement: timedelta


class Database:
    """The service's connections to PostgreSQL; it recovers by itself after any failure."""

    def __init__(self, pool: Pool, trace: _Trace = _untraced) -> None:
        self._pool = pool
        self._trace = trace

    def trace(self, query: str) -> AbstractContextManager[Callable[[], None]]:
        """Return a context manager for the span of a query of the current call. It yields the argument `on_connected` of `fetch`."""
        return self._trace(query)

    async def fetch(self, query: str, *args: object, on_connected: Callable[[], None] = _ignore) -> list[asyncpg.Record]:
        """Run one query on a connection of the pool.

        Args:
            on_connected: called when the query has a connection, to record that in its span.

        Raises:
            CatalogUnavailable: PostgreSQL cannot be used now, or no connection was free in time; the message is the cause.
        """
        try:
            return await self._pool.fetch(query, args, on_connected)
        except UNAVAILABLE as exc:
            raise unavailable(exc) from exc

    async def fetch_large(self, client: str, query: str, *args: object, on_connected: Callable[[], None]) -> list[asyncpg.Record]:
        """Run a query with a large result, as `fetch` does. At most two run at a time, and clients take turns.

        Otherwise a client that reads many large pages would delay small calls, and keep the event loop too busy to reject its other calls.
        The wait counts against the timeout of acquiring a connection.
        """
        try:
            return await self._pool.fetch_large(client, query, args, on_connected)
        except UNAVAILABLE as exc:
            raise unavailable(exc) from exc

    async def probe(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Run a health query on the reserved connection, so that it never waits for calls; one at a time.

        If it times out or is cancelled, idle connections are dropped: each would keep a call waiting for an unresponsive server.

        Raises:
            CatalogUnavailable: PostgreSQL cannot be used now; the message is the cause.
        """
        try:
            return await self._pool.fetch_without_permit(query, args)
        except asyncio.CancelledError:
            await self._pool.drop_idle()
            raise
        except UNAVAILABLE as exc:
            if is_timeout(exc):
                await self._pool.drop_idle()
            raise unavailable(exc) from exc

    @property
    def connections(self) -> int:
        """Number of connections, in use or idle."""
        return self._pool.connections

    @property
    def idle_connections(self) -> int:
        """Number of connections that no query uses."""
        return self._pool.idle_connections

    async def reconnect(self) -> None:
        """Replace all connections, and choose among the hosts again. A connection in use is replaced after its query."""
        await self._pool.reconnect()


@contextlib.asynccontextmanager
async def open_database(
    url: str,
    limits: Limits,
    *,
    pooled: bool = False,
    max_replication_lag: timedelta | None = None,
    tracing: "Tracing | None" = None,
) -> AsyncIterator[Database]:
    """Open the database for reading. It connects when the first query runs.

    Args:
        pooled: the URL leads to a pooler in transaction mode, such as PgBouncer. Then prepared statements are unnamed, because the next
            query may run on another server connection. Timeouts are those of the role (deploy/postgres/roles.sql), because a pooler
            rejects unknown startup parameters.
        max_replication_lag: a preferred standby with a longer lag is not used.
    """
    parsed = parse_database_url(url)
    asyncpg_pool = await _create_pool(parsed, limits, pooled=pooled, max_replication_lag=max_replication_lag)
    pool = Pool(asyncpg_pool, size=limits.pool_size, acquire=limits.acquire, hosts=", ".join(map(str, parsed.hosts)))
    try:
        yield Database(pool, tracing.queries_of(parsed.database or "") if tracing else _untraced)
    finally:
        await pool.close()


def _create_pool(
    url: DatabaseUrl, limits: Limits, *, pooled: bool, max_replication_lag: timedelta | None
) -> "asyncpg.Pool[asyncpg.Record]":
    connect = _retry_after_password_change(Hosts(url, slow_s=limits.acquire.total_seconds() / 2).connect)
    if url.target_session_attrs == "prefer-standby" and max_replication_lag is not None:
        connect = connect_unless_lagging(connect, max_replication_lag)
    # Each query is one statement in its own transaction. transaction_timeout would end the session, not only the statement.
    timeouts = SessionTimeouts(statement=limits.statement, lock=limits.statement, idle_in_transaction=limits.statement)
    # For arguments that are arrays, PostgreSQL would plan each execution again: it expects ten elements in a generic plan.
    settings = timeouts.server_settings | {"default_transaction_read_only": "on", "plan_cache_mode": "force_generic_plan"}
    return asyncpg.create_pool(
        connect=connect,
        init=None if pooled else timeouts.set_transaction_timeout,
        target_session_attrs=_TARGET_SESSION_ATTRIBUTES.get(url.target_session_attrs),  # None: those of the URL
        min_size=0,
        max_size=limits.pool_size + 1,  # one is reserved for `Database.probe`
        reset=_end_transaction,
        timeout=limits.connect.total_seconds(),
        command_timeout=limits.statement.total_seconds(),
        server_settings={"application_name": "backup-service"} | ({} if pooled else settings),
        statement_cache_size=0 if pooled else _STATEMENT_CACHE_SIZE,
    )


def _retry_after_password_change(connect: Connect) -> Connect:
    """Return a function that connects again a little later if the password is rejected.

    A role's password and the `passfile` do not change at the same moment.
    """

    async def connect_twice(dsn: str | None = None, **options: Any) -> asyncpg.Connection:
        try:
            return await connect(**options)
        except ConnectFailed as exc:
            if not isinstance(exc.__cause__, asyncpg.InvalidPasswordError):
                raise
        await asyncio.sleep(_PASSWORD_CHANGE_S)
        return await connect(**options)

    return connect_twice


async def _end_transaction(connection: Any) -> None:
    """End the transaction of a query that was cancelled after PostgreSQL had prepared it, and before it was executed.

    asyncpg sends Sync, which ends the transaction, only with the execution. Without Sync, the session would keep its lock on the table.
    Nothing else needs a reset, because every query is a single SELECT.
    """
    await connection.execute("")
