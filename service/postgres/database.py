"""Connections to PostgreSQL, each wait on them bounded; asyncpg's errors become ours at this one door."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from service.database_url import parse_database_url
from service.errors import CatalogUnavailable, ConnectFailed
from service.postgres.hosts import connecting

if TYPE_CHECKING:  # imported only where traces are asked for
    from service.observability.tracing import Tracing

Connect: TypeAlias = Any
"""A function that is called as `asyncpg.connect` is."""

_Trace: TypeAlias = Callable[[str], AbstractContextManager[Callable[[], None]]]


def _nothing() -> None:
    pass


_UNTRACED: AbstractContextManager[Callable[[], None]] = contextlib.nullcontext(_nothing)

# PostgreSQL is gone, going or too slow. What is not listed is a bug of ours, and passes through.
UNAVAILABLE = (
    ConnectFailed,
    OSError,  # refused, reset; TimeoutError, which asyncpg's own timeouts raise, is one too
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutdown, failover, statement_timeout
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,  # a standby cancels what conflicts with recovery
    asyncpg.InvalidAuthorizationSpecificationError,  # a password that is not there (yet), or is being changed
    asyncpg.InvalidCatalogNameError,  # a database that is not there (yet)
    asyncpg.TargetServerAttributeNotMatched,  # no server of the wanted role
    asyncpg.InterfaceError,  # the connection was lost between acquire and use (also some of our own bugs: their first test shows them)
    asyncpg.InternalClientError,  # the connection was lost in the middle of its set-up
    asyncpg.ObjectNotInPrerequisiteStateError,  # "the database system is in recovery", a standby that takes no queries
    asyncpg.UndefinedTableError,  # not migrated (yet)
)


# Whether a session could write is how these are told apart, and the service's own, on whatever server, never can.
_ROLES = {"read-write": SessionAttribute.primary, "read-only": SessionAttribute.standby}

_STATEMENTS_HELD = 100  # for each connection; asyncpg's own default

_PASSWORD_CHANGE_S = 1.0


def unavailable(exc: BaseException) -> CatalogUnavailable:
    """Return the error to raise from one of `UNAVAILABLE`; it contains the text of our own errors only, since it is logged."""
    return CatalogUnavailable(str(exc)) if isinstance(exc, ConnectFailed) else CatalogUnavailable()


class Limits(NamedTuple):
    """How many connections, and how long to wait for what."""

    pool_size: int
    connect: timedelta
    acquire: timedelta
    """For a connection of the pool, and, once a call was cancelled, for PostgreSQL to let go of its query."""
    statement: timedelta
    max_age: timedelta
    """Of a connection: one to a server that has changed its role is left by then."""


class Database:
    """A pool of connections, made as they are needed: it opens while PostgreSQL is down, and heals by itself.

    What asyncpg's pool does for each checkout costs twice as much as a query. So connections that have ended a query well are kept here,
    and the pool sees only those that are new, that failed, whose call was cancelled, or that are too old.
    """

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", limits: Limits, trace: _Trace = lambda query: _UNTRACED) -> None:
        self._pool = pool
        self._limits = limits
        self._trace = trace
        self._permits = asyncio.Semaphore(limits.pool_size)
        self._kept: list[Any] = []  # the last one in is the first one out: what is not needed grows old
        self._generation = 0
        self._releases: set[asyncio.Task[None]] = set()

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Runs one query on a connection of the pool.

        Raises:
            CatalogUnavailable: PostgreSQL is gone, going or too slow, or no connection came free in time.
        """
        try:
            with self._trace(query) as connected:
                left = await self._permit()
                try:
                    return await self._fetch(query, args, connected, within=left)
                finally:
                    self._permits.release()
        except UNAVAILABLE as exc:
            raise unavailable(exc) from exc

    async def look(self, query: str) -> list[asyncpg.Record]:
        """Runs a query of whoever looks after PostgreSQL, one at a time, on a connection beyond those of calls: it waits for none of them.

        Where it gets no answer before it is cancelled, or times out, connections that are not in use are dropped: a server that has gone
        without a word would keep a call waiting on each of them.

        Raises:
            CatalogUnavailable: PostgreSQL is gone, going or too slow.
        """
        try:
            return await self._fetch(query, (), _nothing, within=self._limits.acquire.total_seconds())
        except (TimeoutError, asyncio.CancelledError) as exc:
            await self._drop_kept()
            if isinstance(exc, TimeoutError):
                raise unavailable(exc) from exc
            raise
        except UNAVAILABLE as exc:
            raise unavailable(exc) from exc

    async def _permit(self) -> float:
        """Gives the seconds that are left to connect in."""
        within = self._limits.acquire.total_seconds()
        if not self._permits.locked():
            await self._permits.acquire()  # at once
            return within
        began = time.monotonic()
        async with asyncio.timeout(within):
            await self._permits.acquire()
        return within - (time.monotonic() - began)

    async def _fetch(self, query: str, args: tuple[object, ...], connected: Callable[[], None], *, within: float) -> list[asyncpg.Record]:
        generation = self._generation
        connection = self._kept_connection() or await self._pool.acquire(timeout=within)
        connected()
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *args)
        except BaseException:
            self._release_in_background(connection)
            raise
        if generation == self._generation:
            self._kept.append(connection)
        else:
            self._release_in_background(connection)  # it has grown old meanwhile
        return rows

    def _kept_connection(self) -> Any:
        while self._kept:
            connection = self._kept.pop()
            with contextlib.suppress(asyncpg.InterfaceError):  # it was lost, and the pool has taken it back
                if not connection.is_closed():
                    return connection
            self._release_in_background(connection)
        return None

    def _release_in_background(self, connection: Any) -> None:
        """No answer waits for it: after a cancelled call, PostgreSQL may take long to let go of the query."""
        task = asyncio.ensure_future(self._pool.release(connection, timeout=self._limits.acquire.total_seconds()))
        self._releases.add(task)
        task.add_done_callback(self._released)

    def _released(self, task: "asyncio.Task[None]") -> None:
        self._releases.discard(task)
        if not task.cancelled():
            task.exception()  # a connection that cannot be released has been terminated, which is all there is to do

    def _release_kept(self) -> None:
        self._generation += 1
        while self._kept:
            self._release_in_background(self._kept.pop())

    async def _drop_kept(self) -> None:
        """At once: a server that says nothing would not say goodbye either."""
        for connection in self._kept:
            with contextlib.suppress(asyncpg.InterfaceError):  # it was lost, and the pool has taken it back
                connection.terminate()
        await self.leave_servers()

    @property
    def connections(self) -> int:
        """How many there are, in use or not."""
        return self._pool.get_size()

    @property
    def idle_connections(self) -> int:
        return self._pool.get_idle_size() + len(self._kept)

    async def renew(self) -> None:
        """Replaces every connection once it is as old as it may become, for as long as the server runs; those in use, after use."""
        while True:
            await asyncio.sleep(self._limits.max_age.total_seconds())
            await self.leave_servers()

    async def leave_servers(self) -> None:
        """Connects anew, and so chooses anew among the hosts; connections in use are replaced after use."""
        await self._pool.expire_connections()
        self._release_kept()

    async def close(self) -> None:
        """Waits for the connections in use, then gives up on them."""
        self._release_kept()
        try:
            await asyncio.wait_for(self._pool.close(), self._limits.acquire.total_seconds())
        except (TimeoutError, *UNAVAILABLE):
            self._pool.terminate()


@contextlib.asynccontextmanager
async def open_database(
    url: str,
    limits: Limits,
    *,
    pooled: bool = False,
    connect_preferring_standby: Callable[[Connect], Connect] = lambda connect: connect,
    tracing: "Tracing | None" = None,
) -> AsyncIterator[Database]:
    """A pool for the service's reads.

    Args:
        connect_preferring_standby: from a function that connects makes the one that is used where the URL prefers a standby.
        pooled: a pooler is in between that lends servers by the transaction, such as PgBouncer. Then statements have no names, which would
            stay with a server, and the settings below are left to the role (deploy/postgres/roles.sql): a pooler refuses what it does
            not know.
    """
    settings = {
        "statement_timeout": str(int(limits.statement.total_seconds() * 1000)),
        "default_transaction_read_only": "on",
    }
    parsed = parse_database_url(url)
    attributes = parsed.target_session_attrs
    connect = _through_a_change_of_password(connecting(parsed, unavailable=UNAVAILABLE, patience=limits.acquire.total_seconds() / 2))
    pool = asyncpg.create_pool(
        connect=connect_preferring_standby(connect) if attributes == "prefer-standby" else connect,
        target_session_attrs=_ROLES.get(attributes),  # None: those of the URL
        min_size=0,  # nothing connects before the first query
        max_size=limits.pool_size + 1,  # for `look`
        reset=_keep_session,
        timeout=limits.connect.total_seconds(),
        command_timeout=limits.statement.total_seconds(),
        server_settings={"application_name": "backup-service"} | ({} if pooled else settings),
        statement_cache_size=0 if pooled else _STATEMENTS_HELD,
    )
    async with contextlib.AsyncExitStack() as stack:
        traced = {"trace": tracing.queries_of(parsed.database or "")} if tracing else {}
        database = Database(await pool, limits, **traced)
        stack.push_async_callback(database.close)
        yield database


def _through_a_change_of_password(connect: Connect) -> Connect:
    """Connects once more, a little later, where the password is refused: a role and its `passfile` change one after the other."""

    async def connected(*args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(asyncpg.InvalidPasswordError):
            return await connect(*args, **kwargs)
        await asyncio.sleep(_PASSWORD_CHANGE_S)
        return await connect(*args, **kwargs)

    return connected


async def _keep_session(connection: Any) -> None:
    """Nothing to reset: every query is a single SELECT, which leaves nothing behind (asyncpg's reset is a round trip for each call)."""
