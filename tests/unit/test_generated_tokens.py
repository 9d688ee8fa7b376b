"""Generated JWKS documents, keys and tokens: no error but the documented ones, and no token accepted that joserfc rejects."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from service.api.auth.authentication import Caller, JwtAuthenticator, TokenRules
from service.api.auth.jwks import parse_jwks
from service.api.auth.signing_keys import SigningKeys
from service.errors import InvalidJwks, KeysUnavailable, Unauthenticated
from tests.support.independent import is_accepted
from tests.support.tokens import AUDIENCE, ISSUER

_MINUTE = timedelta(minutes=1)
_settings = settings(max_examples=150)


class _Pair(NamedTuple):
    """A private key, its public JWKS entry, and the algorithms that fit it."""

    private: Any
    entry: dict[str, Any]
    algorithms: tuple[str, ...]


def _pair(private: Any, to_jwk: Callable[[Any], str], *algorithms: str) -> _Pair:
    entry = json.loads(to_jwk(private.public_key()))
    entry.pop("key_ops", None)
    return _Pair(private, entry, algorithms)


_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_PAIRS = {
    "rsa": _pair(rsa.generate_private_key(public_exponent=65537, key_size=2048), RSAAlgorithm.to_jwk, *_RSA),
    "p256": _pair(ec.generate_private_key(ec.SECP256R1()), ECAlgorithm.to_jwk, "ES256"),
    "p384": _pair(ec.generate_private_key(ec.SECP384R1()), ECAlgorithm.to_jwk, "ES384"),
    "p521": _pair(ec.generate_private_key(ec.SECP521R1()), ECAlgorithm.to_jwk, "ES512"),
    "ed25519": _pair(ed25519.Ed25519PrivateKey.generate(), OKPAlgorithm.to_jwk, "EdDSA", "Ed25519"),
}
_PRIVATE = [
    json.loads(RSAAlgorithm.to_jwk(_PAIRS["rsa"].private)),
    json.loads(ECAlgorithm.to_jwk(_PAIRS["p256"].private)),
    json.loads(OKPAlgorithm.to_jwk(_PAIRS["ed25519"].private)),
    {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
    json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key())),
]


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _token(pair: _Pair, algorithm: str, header: str, claims: str) -> str:
    signing_input = f"{_segment(header.encode())}.{_segment(claims.encode())}"
    signature = jwt.get_algorithm_by_name(algorithm).sign(signing_input.encode(), pair.private)
    return f"{signing_input}.{_segment(signature)}"


def _claims() -> dict[str, Any]:
    return {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600, "sub": "client", "folders": ["f1"]}


def _authenticator(jwks: bytes) -> JwtAuthenticator:
    async def read() -> bytes:
        return jwks

    keys = SigningKeys(read, refresh=_MINUTE, max_age=_MINUTE, retry=_MINUTE)
    asyncio.run(keys.update())
    return JwtAuthenticator(keys, TokenRules(issuer=ISSUER, audience=AUDIENCE, max_lifetime=timedelta(days=1)))


def _caller(jwks: bytes, token: str) -> Caller | None:
    """Return the caller of an accepted token, or None. Each token is sent twice, because the second response comes from a cache."""
    authenticator, metadata = _authenticator(jwks), [("authorization", f"Bearer {token}")]
    callers: list[Caller | None] = []
    for _ in range(2):
        caller, error = None, None
        try:
            caller = authenticator.authenticate(metadata)
        except Exception as exc:
            error = exc
        callers.append(caller)
        assert error is None or isinstance(error, Unauthenticated | KeysUnavailable), error
        assert getattr(error, "reason", None) != "unexpected"
    assert callers[0] == callers[1]
    if callers[0] is not None:
        assert is_accepted(token, jwks)
    return callers[0]


_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**400)])
    | st.floats()
    | st.text(max_size=20)
    | st.integers(1, 7).map(lambda exponent: "x" * 4**exponent)
)
_json = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8
)

_plausible: dict[str, list[Any]] = {
    "kty": ["RSA", "EC", "OKP", "oct", "rsa"],
    "crv": ["P-256", "P-384", "P-521", "secp256k1", "Ed25519", "Ed448", "X25519"],
    "alg": ["RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA", "Ed25519", "HS256", "none", "NONE", "rs256", "", "RSA-OAEP"],
    "use": ["sig", "enc", ""],
    "key_ops": [["verify"], ["sign"], ["verify", "sign"], [], ["verify", "verify"], "verify"],
    "kid": ["k", "", "other"],
    "e": ["AQAB", "Aw", "AQ", "", "AAEAAQ", "AQAB==", "!"],
    "n": ["AQAB", "", "_" * 342, "_" * 1400],
    "x": ["", "AA", "_" * 43, "_" * 44],
    "y": ["", "AA", "_" * 43],
    "d": ["AQAB", None],
    "k": ["c2VjcmV0"],
    "typ": ["JWT", "at+jwt", "JOSE", "application/jwt", "logout+jwt"],
    "crit": [[], ["b64"], ["exp"], ["kid"], "b64"],
    "b64": [True, False],
    "zip": ["DEF"],
    "jwk": [_PAIRS["rsa"].entry],
    "jku": ["https://attacker.test/jwks.json"],
    "x5u": ["https://attacker.test/cert.pem"],
    "x5c": [["MII"]],
    "exp": [0, 1e300, 1e12, 4102444800.5, "4102444800", True, [4102444800]],
    "nbf": [0, 1e300, "0", True, 4102444800],
    "iat": [0, 1e300, "0", True, 4102444800],
    "iss": [ISSUER, [ISSUER], "", "https://other.test"],
    "aud": [AUDIENCE, [AUDIENCE], ["other", AUDIENCE], [AUDIENCE, 1], [[AUDIENCE]], {AUDIENCE: 1}, []],
    "sub": ["", "admin"],
    "folders": ["*", ["*"], [], ["f1", "f1"], ["*", 1], {"*": 1}, "f1", [["f1"]]],
    "jti": ["", 1],
    "cty": ["JWT"],
}
_GONE = object()


def _changes(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return new values for some of the fields: plausible ones, any JSON, or `_GONE`."""
    changed = {name: st.sampled_from([*_plausible[name], _GONE]) | _json for name in names}
    return st.fixed_dictionaries({}, optional=changed)


def _applied(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (fields | changes).items() if value is not _GONE}


_key_changes = _changes("kty", "crv", "alg", "use", "key_ops", "kid", "e", "n", "x", "y", "d", "k")
_header_changes = _changes("alg", "kid", "typ", "crit", "b64", "zip", "jwk", "jku", "x5u", "x5c", "cty")
_claim_changes = _changes("exp", "nbf", "iat", "iss", "aud", "sub", "folders", "jti")
_pairs = st.sampled_from(list(_PAIRS.values()))
_entries = st.sampled_from([*(pair.entry for pair in _PAIRS.values()), *_PRIVATE])


@pytest.mark.parametrize("name", list(_PAIRS))
@pytest.mark.parametrize("with_alg", [True, False])
def test_valid_tokens(name: str, *, with_alg: bool) -> None:
    """A valid token of each algorithm is accepted by the service and by joserfc."""
    pair = _PAIRS[name]
    for algorithm in pair.algorithms if with_alg else {pair.algorithms[0], pair.algorithms[-1]} - {"PS512"}:
        entry = pair.entry | {"kid": "k"} | ({"alg": algorithm} if with_alg else {})
        jwks = json.dumps({"keys": [entry]}).encode()
        assert _caller(jwks, _token(pair, algorithm, json.dumps({"alg": algorithm, "kid": "k"}), json.dumps(_claims())))


@_settings
@given(_json | st.dictionaries(st.just("keys"), _json | st.lists(_json)), st.binary(max_size=20))
def test_any_document(document: Any, tail: bytes) -> None:
    """Any JSON document, and any bytes after it, is a JWKS or InvalidJwks."""
    with contextlib.suppress(InvalidJwks):
        parse_jwks(json.dumps(document).encode() + tail)


@_settings
@given(st.lists(st.tuples(_entries, _key_changes).map(lambda parts: _applied(*parts)) | _json, max_size=4), _pairs, st.data())
def test_any_key(entries: list[Any], pair: _Pair, data: st.DataObject) -> None:
    """Keys whose fields are of any type and size cause no other error, and accept no token that joserfc rejects."""
    algorithm = data.draw(st.sampled_from(pair.algorithms))
    jwks = json.dumps({"keys": [*entries, pair.entry | data.draw(_changes("alg", "use", "key_ops", "kid").map(_without_gone))]}).encode()
    assume(len(jwks) < 256 * 1024)
    header = {"alg": algorithm, "kid": data.draw(st.sampled_from(["k", "", "other"]))}
    _caller(jwks, _token(pair, algorithm, json.dumps(header), json.dumps(_claims())))


def _without_gone(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if value is not _GONE}


@_settings
@given(_pairs, _header_changes, st.data())
def test_any_header(pair: _Pair, changes: dict[str, Any], data: st.DataObject) -> None:
    """A signed header whose fields are of any type and size causes no other error."""
    algorithm = data.draw(st.sampled_from(pair.algorithms))
    jwks = json.dumps({"keys": [pair.entry | {"kid": "k", "alg": algorithm}]}).encode()
    header = _applied({"alg": algorithm, "kid": "k"}, changes)
    caller = _caller(jwks, _token(pair, algorithm, json.dumps(header), json.dumps(_claims())))
    if caller is not None:
        assert header["alg"] == algorithm


@_settings
@given(_pairs, _claim_changes)
def test_any_claims(pair: _Pair, changes: dict[str, Any]) -> None:
    """Signed claims of any type and size cause no other error; the caller may read nothing but the folders that they list."""
    algorithm = pair.algorithms[0]
    jwks = json.dumps({"keys": [pair.entry | {"kid": "k"}]}).encode()
    claims = _applied(_claims(), changes)
    caller = _caller(jwks, _token(pair, algorithm, json.dumps({"alg": algorithm, "kid": "k"}), json.dumps(claims)))
    if caller is not None and caller.folders is None:
        assert claims["folders"] == "*" or "*" in claims["folders"]
    elif caller is not None:
        assert caller.folders == frozenset(claims.get("folders", []))


_HEADER = json.dumps({"alg": "RS256", "kid": "k"})
_JWKS = json.dumps({"keys": [_PAIRS["rsa"].entry | {"kid": "k"}]}).encode()
_texts = st.text(max_size=30) | st.sampled_from(
    ["", "null", "[]", "{}", "[" * 600, '{"a":' * 100, "1" * 500, _HEADER, '{"alg":"none","alg":"RS256","kid":"k"}', "\ufeff{}", "NaN"]
)


@_settings
@given(_texts, _texts)
def test_any_text_as_header_and_claims(header: str, claims: str) -> None:
    """Signed texts that are not JSON objects cause no other error."""
    for signed in ((header, claims), (_HEADER, claims), (header, json.dumps(_claims()))):
        with contextlib.suppress(UnicodeEncodeError):
            _caller(_JWKS, _token(_PAIRS["rsa"], "RS256", *signed))


@_settings
@given(st.text(st.characters(codec="ascii"), max_size=40), st.integers(0, 600), st.integers(0, 5))
def test_any_characters(inserted: str, position: int, removed: int) -> None:
    """A token with characters inserted, removed or replaced causes no other error, and is only accepted if joserfc accepts it."""
    token = _token(_PAIRS["rsa"], "RS256", _HEADER, json.dumps(_claims()))
    _caller(_JWKS, inserted)
    _caller(_JWKS, token[:position] + inserted + token[position + removed :])


@pytest.mark.parametrize("padding", ["=", "==", "===", "\n", " ", "!"])
def test_padding(padding: str) -> None:
    """Segments with padding or other characters are rejected (RFC 7515, section 2)."""
    segments = _token(_PAIRS["rsa"], "RS256", _HEADER, json.dumps(_claims())).split(".")
    for index in range(3):
        changed = [segment + padding * (index == number) for number, segment in enumerate(segments)]
        assert _caller(_JWKS, ".".join(changed)) is None
