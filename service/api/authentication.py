"""Who calls: a bearer token becomes a Caller.

Tokens are JWTs, signed by one family of asymmetric algorithms. Nothing is fetched while a call waits. A token that was verified is
remembered until it expires or its key goes.
"""

import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import jwt

from service.api.jwks import FAMILIES, Keys
from service.errors import Forbidden, Unauthenticated

# Larger ones are always refused: gRPC's own limit for all metadata, which is higher, would refuse some and not others.
TOKEN_MAX_LENGTH = 12 * 1024

_LEEWAY = timedelta(seconds=5)  # of the issuer's clock and ours
_REMEMBERED = 4 << 20  # characters of tokens; with what is in them, five times as many bytes
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
