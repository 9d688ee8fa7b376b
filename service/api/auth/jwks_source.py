"""Sources of a JWKS document: a file or a URL. Every read is bounded in bytes and in time."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from service.address import is_loopback
from service.errors import InvalidJwks
from service.observability import logs

READ_TIMEOUT_S = 10.0
JWKS_MAX_BYTES = 256 * 1024

_WITHDRAWN = (404, 410)
_NO_KEYS = b'{"keys": []}'

Read: TypeAlias = Callable[[], Awaitable[bytes]]
"""Returns a JWKS document. Raises any exception if it cannot be read."""


def jwks_source(source: str) -> Read:
    """Return a function that reads a file, or an `https://` URL, or an `http://` URL of a loopback address."""
    if "://" not in source:
        return lambda: _with_timeout(asyncio.to_thread(_read_file, Path(source)))
    context = ssl.create_default_context()  # the system's authorities
    return lambda: _with_timeout(_fetch(source, context))


async def _with_timeout(reading: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(READ_TIMEOUT_S):
        return await reading


def _read_file(path: Path) -> bytes:
    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # opening a named pipe would block forever

    with open(path, "rb", opener=without_waiting) as file:
        data = file.read(JWKS_MAX_BYTES + 1)
    _check_size(len(data))
    return data


async def _fetch(url: str, context: ssl.SSLContext) -> bytes:
    """Return the body of a 200 response. Redirects are not followed: they could lead to another host, or to plaintext.

    404 and 410 mean that the issuer withdrew all keys.

    Raises:
        InvalidJwks: any other status, or too many bytes.
    """
    import httpx  # the import takes 100 ms, and only URLs need it

    # Proxies of the environment (https_proxy, no_proxy) can only tunnel TLS here, because http:// is limited to loopback.
    uses_proxies = not is_loopback(urlsplit(url).hostname or "")
    headers = {"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity", "cache-control": "no-cache"}
    async with (
        httpx.AsyncClient(
            verify=context, trust_env=uses_proxies, follow_redirects=False, timeout=READ_TIMEOUT_S, headers=headers
        ) as client,
        client.stream("GET", url) as response,
    ):
        if response.status_code in _WITHDRAWN:
            logs.event("signing keys withdrawn", level="error", status=response.status_code)
            return _NO_KEYS
        if response.status_code != httpx.codes.OK:
            raise InvalidJwks(f"HTTP status {response.status_code}")
        return await _bounded(response.aiter_raw())


async def _bounded(parts: AsyncIterator[bytes]) -> bytes:
    data = bytearray()
    async for part in parts:
        data += part
        _check_size(len(data))
    return bytes(data)


def _check_size(size: int) -> None:
    if size > JWKS_MAX_BYTES:
        raise InvalidJwks(f"more than {JWKS_MAX_BYTES} bytes")
