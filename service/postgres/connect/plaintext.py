"""Connections without TLS, which use a password for SCRAM only.

asyncpg answers every request for a password, including requests for cleartext and for MD5, which can be cracked offline. A server that
impersonates PostgreSQL could collect passwords this way. It could also block the event loop, because asyncpg computes any number of SCRAM
iterations in Python, and fill the memory, because asyncpg keeps every parameter that the server reports. asyncpg has no setting against
this, so this module reads the server's messages before asyncpg does, until the session has started.
"""

import asyncio
from collections.abc import Callable
from typing import Any

# Types and requests of https://www.postgresql.org/docs/current/protocol-message-formats.html
_AUTHENTICATION, _READY = b"R", b"Z"
_CLEARTEXT, _MD5, _SCRAM_CHALLENGE = 3, 5, 11
_HEADER = 5  # bytes: the type and the length, which counts itself but not the type
_MAX_MESSAGE = 64 * 1024  # before the first query there are no large messages
_MAX_START = 1 << 20  # bytes of all messages until then
_MAX_ITERATIONS = 1_000_000  # take most of a second; PostgreSQL's default is 4,096

_NOT_SENT = (
    "requests the password {} without TLS, so it was not sent: "
    "use sslmode=verify-full, or a SCRAM password (password_encryption = scram-sha-256)"
)
_TOO_MANY_ITERATIONS = (
    f"requires more than {_MAX_ITERATIONS} iterations of SCRAM without TLS: use sslmode=verify-full, or reduce scram_iterations"
)


class PlaintextLoop:
    """Event loop whose connections end if the server requests a password in cleartext or as MD5, or sends too much.

    It serves one connection of asyncpg, and that connection's cancel requests.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.rejection: str | None = None
        """Reason why the server was rejected, as the end of a sentence that begins with its name."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, factory: Callable[[], asyncio.Protocol], *args: Any, **kwargs: Any) -> tuple[Any, asyncio.Protocol]:
        transport, guard = await self._loop.create_connection(lambda: _Guard(factory(), self._reject), *args, **kwargs)
        return transport, guard.protocol

    async def create_unix_connection(
        self, factory: Callable[[], asyncio.Protocol], *args: Any, **kwargs: Any
    ) -> tuple[Any, asyncio.Protocol]:
        transport, guard = await self._loop.create_unix_connection(lambda: _Guard(factory(), self._reject), *args, **kwargs)
        return transport, guard.protocol

    def _reject(self, error: str) -> None:
        self.rejection = error


class _Guard(asyncio.Protocol):
    """Passes messages on to asyncpg's protocol, and is replaced by it when the session has started."""

    def __init__(self, protocol: asyncio.Protocol, reject: Callable[[str], None]) -> None:
        self.protocol = protocol
        self._reject = reject
        self._unread = b""
        self._received = 0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.protocol.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.protocol.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self.protocol.eof_received()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._unread += data
        while len(self._unread) >= _HEADER:
            size = 1 + int.from_bytes(self._unread[1:_HEADER])
            if not _HEADER <= size <= _MAX_MESSAGE or self._received > _MAX_START:
                self._transport.abort()
                return
            if len(self._unread) < size:
                return
            message, self._unread = self._unread[:size], self._unread[size:]
            if self._pass_on(message):
                return

    def _pass_on(self, message: bytes) -> bool:
        """Pass a message to asyncpg, or abort the connection. Return True if this was the last message to check."""
        if error := _error(message):
            self._reject(error)
            self._transport.abort()
            return True
        is_ready = message[:1] == _READY
        if is_ready:
            self._transport.set_protocol(self.protocol)
            message += self._unread
        self.protocol.data_received(message)
        return is_ready


def _error(message: bytes) -> str | None:
    """Return the reason to reject a message, or None."""
    if message[:1] != _AUTHENTICATION:
        return None
    request, challenge = int.from_bytes(message[_HEADER : _HEADER + 4]), message[_HEADER + 4 :]
    if request == _CLEARTEXT:
        return _NOT_SENT.format("in cleartext")
    if request == _MD5:
        return _NOT_SENT.format("as an MD5 hash")
    if request == _SCRAM_CHALLENGE and _iterations(challenge) > _MAX_ITERATIONS:
        return _TOO_MANY_ITERATIONS
    return None


def _iterations(challenge: bytes) -> int:
    """Return the highest number of iterations in a SCRAM challenge (RFC 5802), `r=NONCE,s=SALT,i=ITERATIONS`."""
    digits = [part[2:] for part in challenge.split(b",") if part.startswith(b"i=")]
    return max((int(each) if each.isdigit() and len(each) < 10 else _MAX_ITERATIONS + 1 for each in digits), default=0)
