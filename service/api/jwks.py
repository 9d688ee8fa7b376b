"""The keys that tokens are signed with: a JWKS, of a file or a URL, that is kept fresh in the background."""

import asyncio
import contextlib
import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt

from service.errors import KeysUnavailable, Unauthenticated
from service.observability import logs

FAMILIES = {
    "RS": ("RS256", "RS384", "RS512"),
    "PS": ("PS256", "PS384", "PS512"),
    "ES": ("ES256", "ES384", "ES512"),
    "EdDSA": ("EdDSA",),
}
_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "EdDSA": "OKP"}

_BROKEN = (ValueError, TypeError, KeyError, AttributeError, RecursionError, jwt.PyJWTError)

_FETCH_TIMEOUT = 10.0  # seconds, for each answer of a socket
_READ_TIMEOUT = 30.0  # seconds, for all of it
_JWKS_MAX_SIZE = 1 << 20  # bytes


class Keys:
    """The keys of a JWKS: the last good set, for as long as it may be used."""

    def __init__(self, read: Callable[[], bytes], *, family: str, refresh: timedelta, max_age: timedelta, retry: timedelta) -> None:
        """
        Args:
            read: gets the JWKS; blocks, and raises where it cannot.
            family: a key of FAMILIES.
            refresh: how old keys are when they are read again.
            max_age: how old keys may become where they cannot be read again.
            retry: the least between two attempts, whatever unknown keys are named.
        """
        self._read, self._family = read, family
        self._refresh, self._max_age, self._retry = refresh.total_seconds(), max_age.total_seconds(), retry.total_seconds()
        self._keys: dict[str | None, Any] = {}
        self._read_at: float | None = None
        self._wanted = asyncio.Event()
        self._reading: threading.Thread | None = None

    @property
    def age(self) -> float:
        """Seconds since the keys were read; infinite where they never were."""
        return math.inf if self._read_at is None else time.monotonic() - self._read_at

    @property
    def fresh(self) -> bool:
        return self.age < self._max_age

    def get(self, kid: str | None) -> Any:
        """The key of this id; without an id, the only key there is.

        Raises:
            Unauthenticated: there is none; it will be looked for.
            KeysUnavailable: the keys are too old, or have never been read.
        """
        if not self.fresh:
            raise KeysUnavailable
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if kid is None or kid not in self._keys:
            self._wanted.set()
            raise Unauthenticated
        return self._keys[kid]

    def holds(self, key: Any) -> bool:
        return self.fresh and any(held is key for held in self._keys.values())

    async def keep_fresh(self) -> None:
        """Reads the keys now and again and again, for as long as the server runs."""
        while True:
            self._wanted.clear()
            succeeded = await self.update()
            await asyncio.sleep(self._retry)
            if succeeded:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), max(self._refresh - self._retry, 0))

    async def update(self) -> bool:
        """Reads the keys; whether that gave any. Keys that are the same as before stay the same objects."""
        try:
            found = self._parse(await self._read_in_time())
        except Exception as exc:  # whatever an issuer provokes: without another try, no token would be good any more
            logs.event("signing keys cannot be read", level="warning", error=logs.describe(exc))
            return False
        if found.keys() != self._keys.keys():
            logs.event("signing keys", count=len(found))
        self._keys = {kid: self._keys[kid] if _same(self._keys.get(kid), key) else key for kid, key in found.items()}
        self._read_at = time.monotonic()
        return True

    async def _read_in_time(self) -> bytes:
        """In a thread that no exit waits for, and no other read beside it: an issuer may answer a byte at a time, for ever."""
        if self._reading and self._reading.is_alive():
            raise TimeoutError("the read before has not ended")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()

        def settle(give: Callable[[Any], None], outcome: object) -> None:
            if not answer.done():  # it may have been given up
                give(outcome)

        def read() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                try:
                    loop.call_soon_threadsafe(settle, answer.set_result, self._read())
                except Exception as exc:
                    loop.call_soon_threadsafe(settle, answer.set_exception, exc)

        self._reading = threading.Thread(target=read, daemon=True)
        self._reading.start()
        return await asyncio.wait_for(answer, _READ_TIMEOUT)

    def _parse(self, data: bytes) -> dict[str | None, Any]:
        try:
            listed = [entry for entry in json.loads(data)["keys"] if self._suits(entry)]
        except _BROKEN as exc:
            raise ValueError("not a JWKS") from exc
        keys: dict[str | None, Any] = {}
        for entry in listed:
            with contextlib.suppress(*_BROKEN):  # what is not understood is ignored (RFC 7517, 5)
                keys[entry.get("kid")] = jwt.PyJWK(entry, self._algorithm(entry))
        if not keys:
            raise ValueError("a JWKS without a key of the right kind")
        return keys

    def _suits(self, entry: dict[str, Any]) -> bool:
        return (
            entry.get("kty") == _KEY_TYPES[self._family]
            and entry.get("use", "sig") == "sig"
            and entry.get("alg", FAMILIES[self._family][0]) in FAMILIES[self._family]
        )

    def _algorithm(self, entry: dict[str, Any]) -> str:
        curve = {"P-384": "ES384", "P-521": "ES512"}.get(entry.get("crv", ""))
        return str(entry.get("alg") or curve or FAMILIES[self._family][0])


def _same(one: Any, other: Any) -> bool:
    return one is not None and one._jwk_data == other._jwk_data  # noqa: SLF001  # PyJWK has no equality


def jwks_reader(source: str) -> Callable[[], bytes]:
    """Reads a JWKS from a file, or from an https (or, for a sidecar, http) URL."""
    if not source.startswith(("https://", "http://")):
        return Path(source).read_bytes

    def fetch() -> bytes:
        try:
            with urllib.request.urlopen(source, timeout=_FETCH_TIMEOUT) as response:  # noqa: S310  # the scheme was checked
                data = b"".join(_parts(response))
        except urllib.error.HTTPError as exc:
            exc.close()  # it is the answer too, with its socket
            raise
        if len(data) > _JWKS_MAX_SIZE:
            raise ValueError("a JWKS of more than a mebibyte")
        return data

    return fetch


def _parts(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """A little more than may be read, at most; each as it comes, so that the time which all of it takes is bounded."""
    deadline, room = time.monotonic() + _READ_TIMEOUT, _JWKS_MAX_SIZE + 1
    while room and (part := response.read1(room)):
        yield part
        room -= len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
