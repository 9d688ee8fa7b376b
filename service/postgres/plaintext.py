"""Connections without TLS, which use a password for SCRAM only.

asyncpg answers every request for a password, including requests for cleartext and for MD5, which can be cracked offline. A server that
impersonates PostgreSQL could collect passwords this way. asyncpg has no setting against this, so this module reads the server's messages
before asyncpg does, until the client is authenticated.
"""

import asyncio
from collections.abc import Callable
from typing import Any

_REFUSED = {3: "in cleartext", 5: "as an MD5 hash"}  # https://www.postgresql.org/docs/current/protocol-message-formats.html
_AUTHENTICATED = 0
_HEADER = 5  # bytes: the type and the length, which counts itself but not the type
_MAX_MESSAGE = 64 * 1024  # before authentication there are no large messages


class PlaintextLoop:
    """Event loop whose connections reject requests for a password in cleartext or as MD5.

    It serves one connection of asyncpg, and that connection's cancel requests.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.refused: str | None = None
        """Form of the password that the server requested, if the request was rejected."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, factory: Callable[[], asyncio.Protocol], *args: Any, **kwargs: Any) -> tuple[Any, asyncio.Protocol]:
        transport, guard = await self._loop.create_connection(lambda: _Guard(factory(), self._refuse), *args, **kwargs)
        return transport, guard.protocol

    async def create_unix_connection(
        self, factory: Callable[[], asyncio.Protocol], *args: Any, **kwargs: Any
    ) -> tuple[Any, asyncio.Protocol]:
        transport, guard = await self._loop.create_unix_connection(lambda: _Guard(factory(), self._refuse), *args, **kwargs)
        return transport, guard.protocol

    def _refuse(self, how: str) -> None:
        self.refused = how


class _Guard(asyncio.Protocol):
    """Passes messages on to asyncpg's protocol, and is replaced by it after authentication."""

    def __init__(self, protocol: asyncio.Protocol, refuse: Callable[[str], None]) -> None:
        self.protocol = protocol
        self._refuse = refuse
        self._unread = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.protocol.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.protocol.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self.protocol.eof_received()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while len(self._unread) >= _HEADER:
            size = 1 + int.from_bytes(self._unread[1:_HEADER])
            if not _HEADER <= size <= _MAX_MESSAGE:
                self._transport.abort()
                return
            if len(self._unread) < size:
                return
            message, self._unread = self._unread[:size], self._unread[size:]
            if self._is_last_to_check(message):
                return

    def _is_last_to_check(self, message: bytes) -> bool:
        """Pass one message on, or abort the connection. Return True if no further message is to be checked."""
        request = int.from_bytes(message[_HEADER : _HEADER + 4]) if message[:1] == b"R" else None
        if request in _REFUSED:
            self._refuse(_REFUSED[request])
            self._transport.abort()
            return True
        if request == _AUTHENTICATED:
            self._transport.set_protocol(self.protocol)
            message += self._unread
        self.protocol.data_received(message)
        return request == _AUTHENTICATED
