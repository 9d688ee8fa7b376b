"""Authentication: a bearer token (JWT, RFC 7519) becomes a `Caller`.

Tokens are signed with an asymmetric algorithm. No key is read while a call waits. Every problem of a token, its claims or its key is
`Unauthenticated`; nothing in a token can cause another error.
"""

import base64
import json
import math
import re
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import jwt

from service.api.auth.jwks import SigningKey
from service.api.auth.signing_keys import SigningKeys
from service.api.auth.token_cache import TokenCache
from service.errors import Forbidden, Rejection, RequestError, Unauthenticated
from service.observability import logs

_LEEWAY = timedelta(seconds=5)  # between the issuer's clock and ours

# Characters of tokens. With their claims, verified tokens take about five times as many bytes.
_VERIFIED_MAX = 4 << 20
_REJECTED_MAX = 1 << 20

_HEADER = re.compile(r"[A-Za-z0-9_-]{1,1024}")
_EXTENSIONS = {"crit", "b64"}  # none is supported (RFC 7515, section 4.1.11)
_TYPES = {"jwt", "at+jwt"}  # at+jwt: RFC 9068
_EVERYTHING = "*"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_url(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("https://", "http://"))


# RFC 7515, section 4.1. Only `alg`, `kid` and `typ` are used.
_HEADER_FIELDS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("alg", "cty", "kid", "typ", "x5t", "x5t#S256"), _is_text),
    **dict.fromkeys(("jku", "x5u"), _is_url),
    "jwk": lambda value: isinstance(value, dict),
    "x5c": lambda value: isinstance(value, list) and all(map(_is_text, value)),
}

# Rejections that are not cached: a token becomes valid with time, and a token with an unknown key requests a new read of the keys.
_PASSING: set[Rejection] = {"early", "lifetime", "key"}

_BY_CLAIM: dict[str, Rejection] = {"iss": "issuer", "aud": "audience"}
_BY_ERROR: list[tuple[type[Exception], Rejection]] = [  # the first match counts
    (jwt.ExpiredSignatureError, "expired"),
    (jwt.ImmatureSignatureError, "early"),
    (jwt.InvalidIssuerError, "issuer"),
    (jwt.InvalidAudienceError, "audience"),
    (jwt.InvalidSignatureError, "signature"),
    (jwt.InvalidAlgorithmError, "algorithm"),
    (jwt.exceptions.InvalidSubjectError, "claims"),
    (jwt.exceptions.InvalidJTIError, "claims"),
    (jwt.InvalidIssuedAtError, "claims"),
    (jwt.PyJWTError, "malformed"),
    (ValueError, "malformed"),
    (RecursionError, "malformed"),
]


class Caller(NamedTuple):
    """The sender of a call and the folders that it may read."""

    subject: str
    folders: frozenset[str] | None
    """None means all."""

    def may_read(self, folder_id: str) -> bool:
        return self.folders is None or folder_id in self.folders

    def require_read(self, folder_id: str) -> None:
        """Check that the caller may read a folder.

        Raises:
            Forbidden: the caller may not read this folder.
        """
        if not self.may_read(folder_id):
            raise Forbidden


ANONYMOUS = Caller("", folders=None)
NOBODY = Caller("", folders=frozenset())

_current: ContextVar[Caller] = ContextVar("caller", default=NOBODY)


def current_caller() -> Caller:
    """Return the caller of the current request; `NOBODY` outside a request."""
    return _current.get()


def set_current_caller(caller: Caller) -> None:
    """Set the caller of the current request. Each request is a task with a context of its own."""
    _current.set(caller)


class Authenticator(Protocol):
    """Finds the caller of a request in its metadata."""

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Return the caller of a request.

        Raises:
            Unauthenticated: no or bad credentials.
            KeysUnavailable: no key can verify them now.
        """


class Anonymous:
    """Accepts every call. Its caller may read everything."""

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """See `Authenticator`."""
        return ANONYMOUS


class Verified(NamedTuple):
    """A verified token with its expiry and signing key."""

    caller: Caller
    expires_at: float
    key: SigningKey


class TokenRules(NamedTuple):
    """Requirements on the claims of a token."""

    issuer: str
    audience: str
    max_lifetime: timedelta
    """Maximum time from now until `exp`."""


class JwtAuthenticator:
    """Authenticates callers by JWT. The claim `folders` lists the ids of the folders that the caller may read, or is `*` for all.

    Verified tokens are cached until they expire or their key is withdrawn. Rejected tokens are cached until the keys change,
    so that the signature of a repeated token is not checked for each call.
    """

    def __init__(self, keys: SigningKeys, rules: TokenRules) -> None:
        self._keys, self._rules = keys, rules
        self._verified: TokenCache[Verified] = TokenCache(_VERIFIED_MAX)
        self._rejected: TokenCache[Rejection] = TokenCache(_REJECTED_MAX)
        self._rejected_with = keys.version

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """See `Authenticator`."""
        token = _bearer_token(metadata)
        verified = self._verified.get(token)
        if verified is None or verified.expires_at <= time.time() or not self._keys.holds(verified.key):
            verified = self._verify(token)
            self._verified.put(token, verified)
        return verified.caller

    def _verify(self, token: str) -> Verified:
        if self._rejected_with != self._keys.version:
            self._rejected.clear()
            self._rejected_with = self._keys.version
        if (reason := self._rejected.get(token)) is not None and not self._keys.problem:
            raise Unauthenticated(reason)
        try:
            return self._checked(token)
        except Unauthenticated as exc:
            if exc.reason not in _PASSING:
                self._rejected.put(token, exc.reason)
            raise

    def _checked(self, token: str) -> Verified:
        """Check the cheap parts first: until the signature is verified, every byte may come from an attacker."""
        try:
            header = _header(token)
            key = self._keys.get(header.get("kid"))
            _check_signature(token, header, key)
            claims = jwt.decode(
                token,
                key.jwk.key,
                algorithms=key.algorithms,
                issuer=self._rules.issuer,
                audience=self._rules.audience,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
            return Verified(_caller(claims), self._expiry(claims), key)
        except RequestError:
            raise
        except Exception as exc:
            raise Unauthenticated(_rejection(exc)) from None  # an error's text may quote the token

    def _expiry(self, claims: dict[str, Any]) -> float:
        """Return the expiry of the token, in seconds since 1970, leeway included."""
        # PyJWT also accepts texts, booleans and infinity as times.
        if not all(_is_time(claims[name]) for name in ("exp", "nbf", "iat") if name in claims):
            raise Unauthenticated("claims")
        if claims["exp"] > time.time() + (self._rules.max_lifetime + _LEEWAY).total_seconds():
            raise Unauthenticated("lifetime")
        return float(claims["exp"]) + _LEEWAY.total_seconds()


def _header(token: str) -> dict[str, Any]:
    """Return the header of a well-formed token. Its size is checked before it is parsed."""
    segment, _, rest = token.partition(".")
    # PyJWT accepts padding (`=`), RFC 7515 does not.
    if rest.count(".") != 1 or "=" in rest or not _HEADER.fullmatch(segment):
        raise Unauthenticated("malformed")
    header = json.loads(_decode(segment))
    if not isinstance(header, dict) or not _EXTENSIONS.isdisjoint(header):
        raise Unauthenticated("malformed")
    if not all(is_valid(header[name]) for name, is_valid in _HEADER_FIELDS.items() if name in header):
        raise Unauthenticated("malformed")
    if header.get("typ", "JWT").lower().removeprefix("application/") not in _TYPES:
        raise Unauthenticated("type")
    return header


def _check_signature(token: str, header: dict[str, Any], key: SigningKey) -> None:
    """Reject a wrong signature without PyJWT, which first inspects every character of the token (0.5 ms for 12 KiB)."""
    if header.get("alg") not in key.algorithms:
        raise Unauthenticated("algorithm")
    signed, _, signature = token.rpartition(".")
    if not key.jwk.Algorithm.verify(signed.encode(), key.jwk.key, _decode(signature)):
        raise Unauthenticated("signature")


def _decode(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "==")  # excess padding is ignored


def _rejection(error: Exception) -> Rejection:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return _BY_CLAIM.get(error.claim, "claims")
    found = next((reason for kind, reason in _BY_ERROR if isinstance(error, kind)), None)
    if found is None:
        logs.event("token verification failed unexpectedly", level="warning", error=logs.describe(error))
        return "unexpected"
    return found


def _is_time(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _caller(claims: dict[str, Any]) -> Caller:
    folders, subject = claims.get("folders", []), claims.get("sub", "")
    if folders == _EVERYTHING:
        return Caller(subject, folders=None)
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise Unauthenticated("claims")
    return Caller(subject, folders=None if _EVERYTHING in folders else frozenset(folders))


def _bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the token of the only authorization header. With two headers, proxies and the service could use different ones.

    Raises:
        Unauthenticated: there is not exactly one header, or its value is not a bearer token.
    """
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        raise Unauthenticated("missing")
    if len(values) != 1 or not isinstance(values[0], str):
        raise Unauthenticated("malformed")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("malformed")
    return token
