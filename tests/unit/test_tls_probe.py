"""Causes of a failed connection of the client, against servers on this machine."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.cli.client import tls_probe
from service.cli.client.service_address import ServiceAddress
from tests.support.certificates import Authority, Files
from tests.support.ports import free_ports
from tests.support.proxy import listening

_SETTINGS_FRAME = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@pytest.fixture(name="authority", scope="module")
def _authority() -> Authority:
    return Authority()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the first bytes of a client with the first frame of an HTTP/2 server."""
    if await reader.read(1000):
        writer.write(_SETTINGS_FRAME)
    writer.close()


@pytest.fixture(name="tls_server")
async def _tls_server(authority: Authority, tmp_path: Path) -> AsyncIterator[ServiceAddress]:
    """Yield the address of a server with a certificate for `localhost`."""
    files = Files(tmp_path)
    files.write(authority.pair("server"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    server = await asyncio.start_server(_answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield ServiceAddress.parse(f"localhost:{server.sockets[0].getsockname()[1]}")


async def test_certificate_errors(tls_server: ServiceAddress, authority: Authority) -> None:
    """The reason is that of OpenSSL; there is none for a certificate that is accepted."""
    assert await tls_probe.certificate_error(tls_server, authority.cert, None) is None
    assert await tls_probe.certificate_error(tls_server, authority.cert, "other.example") == (
        "Hostname mismatch, certificate is not valid for 'other.example'"
    )
    assert "issuer" in (await tls_probe.certificate_error(tls_server, Authority("other").cert, None) or "")


async def test_certificate_errors_without_a_certificate(authority: Authority) -> None:
    """A server that does not answer, or that answers in plaintext, has no certificate that could be the cause."""
    [port] = free_ports(1)
    assert await tls_probe.certificate_error(ServiceAddress.parse(f"localhost:{port}"), authority.cert, None) is None
    async with listening(_answer) as port:
        assert await tls_probe.certificate_error(ServiceAddress.parse(f"localhost:{port}"), authority.cert, None) is None


async def test_protocols(tls_server: ServiceAddress) -> None:
    """A server with TLS accepts TLS only, and a server without TLS plaintext only."""
    assert (await tls_probe.accepts_tls(tls_server), await tls_probe.accepts_plaintext(tls_server)) == (True, False)
    async with listening(_answer) as port:
        address = ServiceAddress.parse(f"127.0.0.1:{port}")
        assert (await tls_probe.accepts_tls(address), await tls_probe.accepts_plaintext(address)) == (False, True)


async def test_unix_socket(tmp_path: Path) -> None:
    """The protocol of a server on a Unix socket is found too; a socket that does not exist accepts none."""
    address = ServiceAddress.parse(f"unix:{tmp_path / 'socket'}")
    assert not await tls_probe.accepts_plaintext(address)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(await asyncio.start_unix_server(_answer, address.path))
        assert (await tls_probe.accepts_tls(address), await tls_probe.accepts_plaintext(address)) == (False, True)
