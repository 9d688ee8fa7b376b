"""Cause of a failed connection: only one side uses TLS, or the server's certificate is not accepted.

gRPC reports a TLS client at a plaintext port as a failed handshake, and a plaintext client at a TLS port as a closed socket.
It does not report the reason why a certificate is not accepted.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import NamedTuple

from service.cli.client.service_address import ServiceAddress

_TIMEOUT_S = 2.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # with an empty SETTINGS frame (RFC 9113, 3.4)
_FRAME_HEADER = 9
_SETTINGS = 4


class _Stream(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def accepts_tls(address: ServiceAddress) -> bool:
    """Return True if the server completes a TLS handshake. No certificate is verified, and nothing is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(_TIMEOUT_S), _connected(address, context):
            return True
    except ssl.SSLError as exc:
        return "ALERT" in (exc.reason or "")  # only TLS sends alerts, for example for a missing client certificate
    except (OSError, TimeoutError, EOFError):
        return False


async def certificate_error(address: ServiceAddress, ca: bytes | None, server_name: str | None) -> str | None:
    """Return the reason why the server's certificate is not accepted; None if it is accepted, or if the handshake fails otherwise."""
    context = ssl.create_default_context(cadata=ca.decode("ascii") if ca else None)
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(_TIMEOUT_S), _connected(address, context, server_name):
            return None
    except ssl.SSLCertVerificationError as exc:
        return exc.verify_message.rstrip(".")
    except (OSError, TimeoutError, EOFError):
        return None


async def accepts_plaintext(address: ServiceAddress) -> bool:
    """Return True if the server answers HTTP/2 without TLS."""
    try:
        async with asyncio.timeout(_TIMEOUT_S), _connected(address, None) as stream:
            stream.writer.write(_PREFACE)
            header = await stream.reader.readexactly(_FRAME_HEADER)
    except (OSError, TimeoutError, EOFError):
        return False
    return header[3] == _SETTINGS


@contextlib.asynccontextmanager
async def _connected(address: ServiceAddress, context: ssl.SSLContext | None, server_name: str | None = None) -> AsyncIterator[_Stream]:
    name = (server_name or address.host or "localhost") if context else None
    if address.path:
        stream = _Stream(*await asyncio.open_unix_connection(address.path, ssl=context, server_hostname=name))
    else:
        stream = _Stream(*await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname=name))
    try:
        yield stream
    finally:
        stream.writer.transport.abort()
