"""Clients that ping connections without calls, as the official Go client does."""

import asyncio

from hyperframe.frame import GoAwayFrame, PingFrame

from service.server import Server
from tests.support.http2 import Connection

_ENHANCE_YOUR_CALM = 11


async def _ping(connection: Connection) -> bool:
    """Return True if the ping is answered, False if the connection is closed."""
    connection.send(PingFrame(opaque_data=b"keepaliv"))
    while True:
        frame = await connection.frame()
        if isinstance(frame, GoAwayFrame):
            assert frame.error_code == _ENHANCE_YOUR_CALM
            return False
        if isinstance(frame, PingFrame):
            return True


async def test_pings_without_calls(server: Server) -> None:
    """Pings at intervals of more than a second are answered, and a flood of pings closes the connection."""
    async with asyncio.timeout(30), Connection.to(server.address) as connection:
        for _ in range(5):
            assert await _ping(connection)
            await asyncio.sleep(1.2)  # the interval under test
        while await _ping(connection):
            pass
