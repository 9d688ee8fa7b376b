"""A TCP proxy in front of PostgreSQL's socket, which can go deaf: connections stay, and nothing passes any more."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path


class Proxy:
    """Passes bytes both ways while it is open."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._open = asyncio.Event()
        self._open.set()
        self._connections: set[asyncio.StreamWriter] = set()
        self.port = 0

    def blackhole(self) -> None:
        """From now on nothing passes, and nobody is told; new connections are taken, and get no answer."""
        self._open.clear()

    def heal(self) -> None:
        """Ends the connections that were held, as a network does that has forgotten them, and lets new ones through."""
        for writer in self._connections:
            writer.transport.abort()
        self._open.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, RuntimeError), self._held(writer):  # uvloop's, of what is closed
            await self._open.wait()
            to_reader, to_writer = await asyncio.open_unix_connection(str(self._upstream))
            with self._held(to_writer):
                await asyncio.gather(self._pass(reader, to_writer), self._pass(to_reader, writer))

    @contextlib.contextmanager
    def _held(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        """Until both ways have ended, or the upstream is not there."""
        self._connections.add(writer)
        try:
            yield
        finally:
            self._connections.remove(writer)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def listening(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    """Takes connections on a port of its own, which it gives."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def proxied(upstream: Path) -> AsyncIterator[Proxy]:
    """A proxy to a Unix socket, on a port of its own."""
    proxy = Proxy(upstream)
    async with listening(proxy.serve) as proxy.port:
        try:
            yield proxy
        finally:
            proxy.heal()
