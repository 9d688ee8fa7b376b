"""Sources of JWKS documents."""

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from service.api.auth import jwks_source as module
from service.api.auth.jwks_source import JWKS_MAX_BYTES, jwks_source
from service.errors import InvalidJwks
from tests.support.certificates import Authority, Files
from tests.support.huge_file import huge_file
from tests.support.proxy import listening
from tests.support.tokens import Source


async def test_document(source: Source, tmp_path: Path) -> None:
    """A document is read from a URL and from a file."""
    source.response = (200, b"document")
    assert await jwks_source(source.url)() == b"document"
    file = tmp_path / "jwks.json"
    file.write_bytes(b"document")
    assert await jwks_source(str(file))() == b"document"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects(source: Source, status: int) -> None:
    """A redirect is an error, and its target is not requested."""
    source.response, source.headers = (status, b"moved"), {"location": source.url}
    with pytest.raises(InvalidJwks, match=f"HTTP status {status}"):
        await jwks_source(source.url)()
    assert source.requests == 1


@pytest.mark.parametrize("status", [201, 204, 400, 401, 403, 429, 500, 503])
async def test_error_statuses(source: Source, status: int) -> None:
    """Any status but 200, 404 and 410 is an error, so that the previous keys stay."""
    source.response = (status, b"")
    with pytest.raises(InvalidJwks, match=f"HTTP status {status}"):
        await jwks_source(source.url)()


@pytest.mark.parametrize("status", [404, 410])
async def test_withdrawal(source: Source, status: int) -> None:
    """404 and 410 withdraw all keys."""
    source.response = (status, b"")
    assert await jwks_source(source.url)() == b'{"keys": []}'


@pytest.mark.parametrize("status", [200, 302, 500])
async def test_endless_bodies(status: int) -> None:
    """No more of a body is read than the limit, and none of a redirect or an error."""
    sent = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d x\r\nlocation: /\r\n\r\n" % status)
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536

    async with listening(answer) as port:
        with pytest.raises(InvalidJwks):
            await jwks_source(f"http://127.0.0.1:{port}/")()
    assert sent < JWKS_MAX_BYTES + (16 << 20)  # socket buffers take a few megabytes


async def test_compressed_body(source: Source) -> None:
    """A compressed body is not decompressed: a small one could become a large one."""
    source.response, source.headers = (200, b"\x1f\x8b"), {"content-encoding": "gzip"}
    assert await jwks_source(source.url)() == b"\x1f\x8b"


async def test_large_file(tmp_path: Path) -> None:
    """A file over the limit is an error, without being read to its end."""
    with huge_file(tmp_path) as file, pytest.raises(InvalidJwks, match=f"more than {JWKS_MAX_BYTES} bytes"):
        await jwks_source(str(file))()


async def test_named_pipe(tmp_path: Path) -> None:
    """A named pipe without a writer is read as empty."""
    os.mkfifo(tmp_path / "pipe")
    assert await jwks_source(str(tmp_path / "pipe"))() == b""


_SLOW = {
    "nothing": b"",
    "status line": b"HTTP/1.1 200 " + b"O" * 10_000,
    "headers": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000,
    "body": b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n" + b" " * 10_000,
    "chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 10_000,
}


@pytest.mark.parametrize("part", list(_SLOW))
async def test_a_byte_at_a_time(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response of which any part arrives a byte at a time ends in a timeout, and its connection is closed."""
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.5)
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(OSError, RuntimeError):  # uvloop raises RuntimeError for closed connections
            for byte in _SLOW[part]:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)
            await reader.read()
        writer.close()
        closed.set()

    async with listening(answer) as port, asyncio.timeout(10):
        with pytest.raises((TimeoutError, httpx.TimeoutException)):
            await jwks_source(f"http://127.0.0.1:{port}/")()
        await closed.wait()


async def test_large_headers() -> None:
    """Headers over 100 KiB are an error."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(OSError):
            writer.write(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000)
            await writer.drain()
        writer.close()

    async with listening(answer) as port:
        with pytest.raises(httpx.RemoteProtocolError):
            await jwks_source(f"http://127.0.0.1:{port}/")()


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "all_proxy"])
async def test_no_proxy_for_loopback(source: Source, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A loopback address is never reached through a proxy of the environment."""
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    source.response = (200, b"document")
    assert await jwks_source(source.url)() == b"document"


async def test_proxy_for_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host is reached by a tunnel through the proxy of https_proxy, unless no_proxy names it."""
    requests: list[bytes] = []

    async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()

    async with listening(reject) as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        with pytest.raises(httpx.ProxyError):
            await jwks_source("https://identity.invalid/jwks.json")()
        monkeypatch.setenv("no_proxy", "identity.invalid")
        with pytest.raises(httpx.ConnectError):
            await jwks_source("https://identity.invalid/jwks.json")()
    assert requests == [b"CONNECT identity.invalid:443 HTTP/1.1\r\n"]


@contextlib.asynccontextmanager
async def _https(folder: Path, authority: Authority, *, name: str) -> AsyncIterator[int]:
    files = Files(folder)
    files.write(authority.pair("issuer", alternative_names=[name]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\ndocument")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An https URL needs a certificate for its host of an authority that the system trusts (SSL_CERT_FILE)."""
    authority = Authority()
    trusted = tmp_path / "authorities.pem"
    trusted.write_bytes(authority.cert)
    async with _https(tmp_path, authority, name="localhost") as port:
        with pytest.raises(httpx.ConnectError):
            await jwks_source(f"https://localhost:{port}/")()
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        assert await jwks_source(f"https://localhost:{port}/")() == b"document"
        with pytest.raises(httpx.ConnectError):
            await jwks_source(f"https://127.0.0.1:{port}/")()


async def test_time_limit_of_reads(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer delays nothing for longer than the limit."""
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.2)
    source.response = None
    began = time.monotonic()
    with pytest.raises((TimeoutError, httpx.TimeoutException)):
        await jwks_source(source.url)()
    assert time.monotonic() - began < 5


async def test_request_headers(source: Source) -> None:
    """Requests to the issuer require the current document from caches, uncompressed."""
    source.response = (200, b"document")
    await jwks_source(source.url)()
    assert source.received["cache-control"] == "no-cache"
    assert source.received["accept-encoding"] == "identity"
