"""Queries that answer several calls together.

Calls that the event loop handles in the same iteration share one query, which costs PostgreSQL and the event loop much less than a query
for each call. A call never waits for another one to arrive: its query starts in the next iteration.
"""

import asyncio
from collections.abc import Callable

import asyncpg

from service.postgres.database import Database

_Rows = dict[int, asyncpg.Record]


class Batches:
    """A query with arrays as arguments, which answers several lookups together."""

    def __init__(self, database: Database, query: str, *, limit: int) -> None:
        """
        Args:
            query: its arguments are arrays of texts, with one element for each lookup. For arrays of other types, asyncpg would run a query
                on each new connection. The first column of its rows is the number of the lookup, from 1.
            limit: lookups in one query.
        """
        self._database, self._query, self._limit = database, query, limit
        self._next: _Batch | None = None

    async def fetch(self, *lookup: str) -> asyncpg.Record | None:
        """Return the row of a lookup, or None if there is none.

        Raises:
            CatalogUnavailable: see `Database.fetch`.
        """
        batch = self._next
        if batch is None or len(batch.lookups) >= self._limit:
            batch = self._next = _Batch()
            batch.task = asyncio.create_task(self._run_query(batch))  # runs in the next iteration of the event loop
        with self._database.trace(self._query) as on_connected:
            return await batch.row(lookup, on_connected)

    async def _run_query(self, batch: "_Batch") -> None:
        if self._next is batch:
            self._next = None
        try:
            rows = await self._database.fetch(self._query, *batch.columns(), on_connected=batch.on_connected)
            batch.succeed({row[0]: row for row in rows})
        except Exception as exc:
            batch.fail(exc)
        finally:
            batch.close()


class _Batch:
    """Lookups of one query, and the calls that wait for it. A call that is cancelled affects no other call."""

    def __init__(self) -> None:
        self.lookups: dict[tuple[str, ...], int] = {}
        """The number of each lookup. Equal lookups share one."""
        self.task: asyncio.Task[None] | None = None
        """Runs the query."""
        self._waiting: list[asyncio.Future[_Rows]] = []
        self._on_connected: list[Callable[[], None]] = []

    async def row(self, lookup: tuple[str, ...], on_connected: Callable[[], None]) -> asyncpg.Record | None:
        """Return the row of a lookup, or None. If all calls of the batch are cancelled, its query is cancelled."""
        number = self.lookups.setdefault(lookup, len(self.lookups) + 1)
        self._on_connected.append(on_connected)
        self._waiting.append(asyncio.get_running_loop().create_future())
        try:
            # Not a variable: an error refers to this frame, and the future to the error.
            return (await self._waiting[-1]).get(number)
        except asyncio.CancelledError:
            if self.task and all(future.done() for future in self._waiting):
                self.task.cancel()
            raise

    def columns(self) -> list[list[str]]:
        """Return the arguments of the query."""
        return [list(column) for column in zip(*self.lookups, strict=True)]

    def on_connected(self) -> None:
        """Record in the span of each call that the query has a connection."""
        for each in self._on_connected:
            each()

    def succeed(self, rows: _Rows) -> None:
        """Return the rows to the calls that wait."""
        for future in self._waiting:
            if not future.done():
                future.set_result(rows)

    def fail(self, error: Exception) -> None:
        """Raise an error in the calls that wait."""
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # retrieved, so that it is not logged if the call is cancelled now

    def close(self) -> None:
        """Release the futures. Calls that still wait are cancelled, which happens only if the event loop is stopped."""
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()
