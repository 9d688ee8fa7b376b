"""Connection pool with bounded waits."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from service.errors import ConnectFailed
from service.postgres.errors import UNAVAILABLE
from service.postgres.turns import Turns

if TYPE_CHECKING:  # the class cannot be subscripted at run time
    from asyncpg.pool import PoolConnectionProxy

    _Connection = PoolConnectionProxy[asyncpg.Record]

LARGE_AT_ONCE = 2
"""Maximum number of large queries that run at the same time."""


class Pool:
    """Pool of connections that are opened on demand, so that it can be created while PostgreSQL is down.

    A checkout from asyncpg's pool costs twice as much as a query. Therefore connections stay checked out while they are idle. They return
    to asyncpg's pool only after a failed or cancelled query, and after `reconnect`.
    """

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", *, size: int, acquire: timedelta, hosts: str) -> None:
        """
        Args:
            pool: has one connection more than `size`, for queries without a permit.
            acquire: how long to wait for a permit and a connection, and for PostgreSQL to cancel a query.
            hosts: for error messages.
        """
        self._pool = pool
        self._size = size
        self._acquire_s = acquire.total_seconds()
        self._hosts = hosts
        self._permits = asyncio.Semaphore(size)
        self._large = Turns(LARGE_AT_ONCE)
        self._idle: list[_Connection] = []  # last in, first out
        self._generation = 0
        self._releases: set[asyncio.Task[None]] = set()

    async def fetch(
        self, query: str, args: tuple[object, ...], on_connected: Callable[[], None], *, waited_s: float = 0.0
    ) -> list[asyncpg.Record]:
        """Run a query when fewer than `size` queries run. The waits for its permit and its connection count against one timeout.

        Args:
            on_connected: called when the query has a connection.
            waited_s: seconds that the query has waited already.

        Raises:
            Any error of `service.postgres.errors.UNAVAILABLE`.
        """
        left_s = await self._acquire_permit(waited_s)
        try:
            return await self._fetch_on_connection(query, args, on_connected, left_s)
        finally:
            self._permits.release()

    async def fetch_large(
        self, client: str, query: str, args: tuple[object, ...], on_connected: Callable[[], None]
    ) -> list[asyncpg.Record]:
        """Run a query with a large result, as `fetch` does, when fewer than `LARGE_AT_ONCE` of them run, in turn with other clients."""
        waited_s = await self._acquire_turn(client)
        try:
            return await self.fetch(query, args, on_connected, waited_s=waited_s)
        finally:
            self._large.release()

    async def fetch_without_permit(self, query: str, args: tuple[object, ...]) -> list[asyncpg.Record]:
        """Run a query on the connection that is reserved for it, so that it never waits for other queries; one at a time."""
        return await self._fetch_on_connection(query, args, lambda: None, self._acquire_s)

    async def _acquire_turn(self, client: str) -> float:
        """Wait until the client may start a large query, and return the seconds that this took."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._acquire_s):
                await self._large.acquire(client)
        except TimeoutError as exc:
            raise ConnectFailed(
                f"no large page could be read within {self._acquire_s:g} s: {LARGE_AT_ONCE} others were being read"
            ) from exc
        return time.monotonic() - began

    async def _acquire_permit(self, waited_s: float) -> float:
        """Wait until the query may start, and return the seconds left for connecting."""
        left_s = self._acquire_s - waited_s
        if not self._permits.locked():
            await self._permits.acquire()  # does not wait
            return left_s
        began = time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                await self._permits.acquire()
        except TimeoutError as exc:
            cause = f"no connection was free within {self._acquire_s:g} s: all {self._size} of the pool were in use"
            raise ConnectFailed(cause) from exc
        return left_s - (time.monotonic() - began)

    async def _fetch_on_connection(
        self, query: str, args: tuple[object, ...], on_connected: Callable[[], None], within_s: float
    ) -> list[asyncpg.Record]:
        """Run a query on an idle connection, or on a new one if it can be opened within `within_s`."""
        generation = self._generation
        connection = self._take_idle() or await self._connect(within_s)
        on_connected()
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *args)
        except BaseException:
            self._release_in_background(connection)
            raise
        if generation == self._generation:
            self._idle.append(connection)
        else:
            self._release_in_background(connection)  # `reconnect` was called during the query
        return rows

    async def _connect(self, within_s: float) -> "_Connection":
        try:
            return await self._pool.acquire(timeout=within_s)
        except TimeoutError as exc:
            raise ConnectFailed(f"cannot connect to {self._hosts}: no response within {within_s:.3g} s") from exc

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            with contextlib.suppress(asyncpg.InterfaceError):  # a lost connection has returned to asyncpg's pool
                if not connection.is_closed():
                    return connection
            self._release_in_background(connection)
        return None

    def _release_in_background(self, connection: "_Connection") -> None:
        """Return a connection without waiting: PostgreSQL may take long to cancel a query."""
        task = asyncio.ensure_future(self._pool.release(connection, timeout=self._acquire_s))
        self._releases.add(task)
        task.add_done_callback(self._on_released)

    def _on_released(self, task: "asyncio.Task[None]") -> None:
        self._releases.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that it is not logged: asyncpg has terminated the connection

    def _release_idle(self) -> None:
        self._generation += 1
        while self._idle:
            self._release_in_background(self._idle.pop())

    @property
    def connections(self) -> int:
        """Number of connections, in use or idle."""
        return self._pool.get_size()

    @property
    def idle_connections(self) -> int:
        """Number of connections that no query uses."""
        return self._pool.get_idle_size() + len(self._idle)

    async def reconnect(self) -> None:
        """Replace all connections, and choose among the hosts again. A connection in use is replaced after its query."""
        await self._pool.expire_connections()
        self._release_idle()

    async def drop_idle(self) -> None:
        """Terminate idle connections without a handshake, for an unresponsive server. Connections in use are replaced after their query."""
        for connection in self._idle:
            with contextlib.suppress(asyncpg.InterfaceError):  # a lost connection has returned to asyncpg's pool
                connection.terminate()
        await self.reconnect()

    async def close(self) -> None:
        """Wait for the queries in progress, then terminate those that have not finished in time."""
        self._release_idle()
        with contextlib.suppress(*UNAVAILABLE):  # asyncpg terminates all connections if its `close` fails or is cancelled
            await asyncio.wait_for(self._pool.close(), self._acquire_s)
