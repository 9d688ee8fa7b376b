"""Who calls: a bearer token becomes a Caller, by keys that are kept fresh in the background.

Tokens are JWTs, signed by one family of asymmetric algorithms, with a key of a JWKS that a file or a URL gives. Nothing is fetched while a
call waits. A token that was verified is remembered until it expires or its key goes.
"""

import asyncio
import contextlib
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jwt

from service import telemetry
from service.errors import Forbidden, KeysUnavailable, Unauthenticated

# Larger ones are always refused: gRPC's own limit for all metadata, which is higher, would refuse some and not others.
TOKEN_MAX_LENGTH = 12 * 1024

FAMILIES = {
    "RS": ("RS256", "RS384", "RS512"),
    "PS": ("PS256", "PS384", "PS512"),
    "ES": ("ES256", "ES384", "ES512"),
    "EdDSA": ("EdDSA",),
}
_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "EdDSA": "OKP"}

_BROKEN = (ValueError, TypeError, KeyError, AttributeError, RecursionError, jwt.PyJWTError)

_LEEWAY = timedelta(seconds=5)  # of the issuer's clock and ours
_REMEMBERED = 4 << 20  # characters of tokens; with what is in them, five times as many bytes
_FETCH_TIMEOUT = 10.0  # seconds, for each answer of a socket
_READ_TIMEOUT = 30.0  # seconds, for all of it
_JWKS_MAX_SIZE = 1 << 20  # bytes
_EVERYTHING = "*"


class Caller(NamedTuple):
    """Who calls, and which folders they may read."""

    subject: str
    folders: frozenset[str] | None
    """None: all."""

    def may_read(self, folder_id: str) -> bool:
        return self.folders is None or folder_id in self.folders

    def require_read(self, folder_id: str) -> None:
        """
        Raises:
            Forbidden: not this folder.
        """
        if not self.may_read(folder_id):
            raise Forbidden


ANYBODY = Caller("", folders=None)
NOBODY = Caller("", folders=frozenset())

_current: ContextVar[Caller] = ContextVar("caller", default=NOBODY)


def current_caller() -> Caller:
    """Who makes the call that is being answered; nobody, who may read nothing, outside of one."""
    return _current.get()


def set_current_caller(caller: Caller) -> None:
    """Each call is a task, so that the caller ends with it."""
    _current.set(caller)


class Authenticator(Protocol):
    """Makes a Caller of a call's metadata."""

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """
        Raises:
            Unauthenticated: no or bad credentials.
            KeysUnavailable: there are no keys to verify them with.
        """


class Anonymous:
    """Everybody may read everything."""

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """See `Authenticator`."""
        return ANYBODY


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
            telemetry.event("signing keys cannot be read", level="warning", error=telemetry.describe(exc))
            return False
        if found.keys() != self._keys.keys():
            telemetry.event("signing keys", count=len(found))
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


class Verified(NamedTuple):
    """A token that was good, and what makes it bad one day."""

    caller: Caller
    expires_at: float
    key: Any


class JwtAuthenticator:
    """Callers by JWT: `exp`, `iss` and `aud` are required; the claim `folders` lists what may be read, `*` being everything."""

    def __init__(self, keys: Keys, *, family: str, issuer: str, audience: str) -> None:
        self._keys, self._algorithms, self._issuer, self._audience = keys, FAMILIES[family], issuer, audience
        self._remembered: OrderedDict[str, Verified] = OrderedDict()
        self._size = 0  # of these tokens together

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """See `Authenticator`."""
        token = _bearer_token(metadata)
        verified = self._remembered.get(token)
        if verified is None or verified.expires_at <= time.time() or not self._keys.holds(verified.key):
            verified = self._remember(token, self._verify(token))
        return verified.caller

    def _remember(self, token: str, verified: Verified) -> Verified:
        if self._remembered.pop(token, None) is None:
            self._size += len(token)
        self._remembered[token] = verified
        while self._size > _REMEMBERED:
            oldest, _ = self._remembered.popitem(last=False)
            self._size -= len(oldest)
        return verified

    def _verify(self, token: str) -> Verified:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._keys.get(kid)
            claims = jwt.decode(
                token,
                key.key,
                algorithms=list(self._algorithms),
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated from None  # its text may quote the token
        return Verified(_caller(claims), float(claims["exp"]) + _LEEWAY.total_seconds(), key)


def _caller(claims: dict[str, Any]) -> Caller:
    folders = claims.get("folders", [])
    if folders == _EVERYTHING or folders == [_EVERYTHING]:
        return Caller(str(claims.get("sub", "")), folders=None)
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise Unauthenticated
    return Caller(str(claims.get("sub", "")), folders=None if _EVERYTHING in folders else frozenset(filter(_may_exist, folders)))


def _may_exist(folder_id: str) -> bool:
    """Whether SQL takes it: a name with NUL or half a surrogate pair, which JSON can hold, is no folder's."""
    with contextlib.suppress(UnicodeEncodeError):
        return b"\0" not in folder_id.encode()
    return False


def _bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The one token of the one header; two would mean that somebody else could choose.

    Raises:
        Unauthenticated: there is none, or more than one, or it is too long.
    """
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str):
        raise Unauthenticated
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not 0 < len(token) <= TOKEN_MAX_LENGTH:
        raise Unauthenticated
    return token


def jwks_reader(source: str) -> Callable[[], bytes]:
    """Reads a JWKS from a file, or from an https (or, for a sidecar, http) URL."""
    if not source.startswith(("https://", "http://")):
        return Path(source).read_bytes

    def fetch() -> bytes:
        try:
            with urllib.request.urlopen(source, timeout=_FETCH_TIMEOUT) as response:  # noqa: S310  # the scheme was checked
                data: bytes = response.read(_JWKS_MAX_SIZE + 1)
        except urllib.error.HTTPError as exc:
            exc.close()  # it is the answer too, with its socket
            raise
        if len(data) > _JWKS_MAX_SIZE:
            raise ValueError("a JWKS of more than a mebibyte")
        return data

    return fetch


def _same(one: Any, other: Any) -> bool:
    return one is not None and one._jwk_data == other._jwk_data  # noqa: SLF001  # PyJWK has no equality
