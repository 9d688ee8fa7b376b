"""Signing keys from a JWKS document (RFC 7517). jwks_source.py reads the document, and signing_keys.py keeps the keys up to date.

A key verifies tokens of its own algorithm only:

key             with `alg`                         without `alg`
RSA             RS256 to RS512, PS256 to PS512     RS256
EC              the algorithm of its curve         ES256, ES384 or ES512, by its curve
OKP, Ed25519    EdDSA or Ed25519 (RFC 9864)        both names, which mean the same algorithm
"""

import contextlib
import json
from collections import Counter, defaultdict
from typing import Any, Literal, NamedTuple, TypeAlias

import jwt
from jwt.algorithms import OKPAlgorithm

from service.errors import Error, InvalidJwks

Ignored: TypeAlias = Literal["algorithm", "duplicate kid", "malformed", "private", "size", "symmetric", "use"]
"""Reason why an entry is not used."""

RSA_BITS = range(2048, 8192 + 1)

_PRIVATE_FIELDS = {"d", "p", "q", "dp", "dq", "qi", "oth"}
_EDDSA = ("EdDSA", "Ed25519")

# By key type or curve. The first tuple is for keys without `alg`.
_ALGORITHMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "RSA": (("RS256",), ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    "P-256": (("ES256",), ("ES256",)),
    "P-384": (("ES384",), ("ES384",)),
    "P-521": (("ES512",), ("ES512",)),
    "Ed25519": (_EDDSA, _EDDSA),
}

with contextlib.suppress(ValueError):  # a later PyJWT may know the name
    jwt.register_algorithm("Ed25519", OKPAlgorithm())


class SigningKey(NamedTuple):
    """A public key and the algorithms that it is used with."""

    kid: str | None
    jwk: jwt.PyJWK
    algorithms: tuple[str, ...]
    """Values of a token's `alg`."""
    entry: dict[str, Any]
    """The JWKS entry."""


class Jwks(NamedTuple):
    """The usable keys of a document, by `kid`, and the number of ignored entries by reason."""

    keys: dict[str | None, SigningKey]
    ignored: Counter[Ignored]


class _Unusable(Error):
    """The entry is not a key that can be used."""

    def __init__(self, reason: Ignored) -> None:
        super().__init__()
        self.reason = reason


def parse_jwks(data: bytes) -> Jwks:
    """Return the keys of a JWKS. An unusable entry does not affect the others.

    Raises:
        InvalidJwks: the document is not a JSON object with a list `keys`.
    """
    ignored: Counter[Ignored] = Counter()
    keys: dict[str | None, list[SigningKey]] = defaultdict(list)
    for entry in _entries(data):
        try:
            key = _signing_key(entry)
        except _Unusable as exc:
            ignored[exc.reason] += 1
        except Exception:  # PyJWT and cryptography raise errors of many types for bad values
            ignored["malformed"] += 1
        else:
            if all(key.entry != other.entry for other in keys[key.kid]):
                keys[key.kid].append(key)
    # Different keys with the same id are ambiguous, so none of them is used.
    ignored["duplicate kid"] = sum(len(found) for found in keys.values() if len(found) > 1)
    return Jwks({kid: found[0] for kid, found in keys.items() if len(found) == 1}, +ignored)


def _entries(data: bytes) -> list[Any]:
    try:
        entries = json.loads(data)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise InvalidJwks("not a JSON object with a list `keys`")
    return entries


def _signing_key(entry: Any) -> SigningKey:
    if not isinstance(entry, dict) or not isinstance(entry.get("kid", ""), str):
        raise _Unusable("malformed")
    if entry.get("kty") == "oct" or "k" in entry:
        raise _Unusable("symmetric")
    if not _PRIVATE_FIELDS.isdisjoint(entry):
        raise _Unusable("private")
    if not _is_for_signatures(entry):
        raise _Unusable("use")
    algorithms = _algorithms(entry)
    jwk = jwt.PyJWK(entry, "EdDSA" if algorithms[0] in _EDDSA else algorithms[0])
    if entry["kty"] == "RSA" and jwk.key.key_size not in RSA_BITS:
        raise _Unusable("size")
    return SigningKey(entry.get("kid"), jwk, algorithms, entry)


def _is_for_signatures(entry: dict[str, Any]) -> bool:
    operations = entry.get("key_ops", ["verify"])
    return entry.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations


def _algorithms(entry: dict[str, Any]) -> tuple[str, ...]:
    kind = "RSA" if entry.get("kty") == "RSA" else entry.get("crv")
    if kind not in _ALGORITHMS:
        raise _Unusable("algorithm")
    default, allowed = _ALGORITHMS[kind]
    if "alg" not in entry:
        return default
    if entry["alg"] not in allowed:
        raise _Unusable("algorithm")
    return (entry["alg"],)
