"""TCP proxy in front of a Unix socket that can become unresponsive: connections stay open, and no data passes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path


class Proxy:
    """Proxy that forwards data in both directions while it is open."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._open = asyncio.Event()
        self._open.set()
        self._connections: set[asyncio.StreamWriter] = set()
        self.port = 0

    def blackhole(self) -> None:
        """Forward nothing from now on; existing and new connections stay open."""
        self._open.clear()

    def restore(self) -> None:
        """Abort all connections, as a network does that has lost their state, and forward data of new ones."""
        for writer in self._connections:
            writer.transport.abort()
        self._open.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, RuntimeError), self._registered(writer):  # uvloop raises RuntimeError for closed transports
            await self._open.wait()
            to_reader, to_writer = await asyncio.open_unix_connection(str(self._upstream))
            with self._registered(to_writer):
                await asyncio.gather(self._forward(reader, to_writer), self._forward(to_reader, writer))

    @contextlib.contextmanager
    def _registered(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        """Let `restore` abort the connection; close it on exit."""
        self._connections.add(writer)
        try:
            yield
        finally:
            self._connections.remove(writer)
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def listening(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    """Accept connections on a free port, and yield the port."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def proxied(upstream: Path) -> AsyncIterator[Proxy]:
    """Yield a proxy to a Unix socket; it listens on a free port."""
    proxy = Proxy(upstream)
    async with listening(proxy.serve) as proxy.port:
        try:
            yield proxy
        finally:
            proxy.restore()
