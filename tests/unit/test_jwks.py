"""Signing keys from JWKS documents."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from service.api.auth.jwks import parse_jwks
from service.errors import InvalidJwks

_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_PUBLIC: dict[str, Any] = json.loads(RSAAlgorithm.to_jwk(_RSA.public_key())) | {"kid": "k"}


def _without_key_ops(entry: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(entry).items() if name != "key_ops"}


def _elliptic(curve: ec.EllipticCurve) -> dict[str, Any]:
    return _without_key_ops(ECAlgorithm.to_jwk(ec.generate_private_key(curve).public_key()))


def _document(*entries: object) -> bytes:
    return json.dumps({"keys": entries}).encode()


_ED25519 = _without_key_ops(OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key()))


@pytest.mark.parametrize(
    ("entry", "algorithms"),
    [
        (_PUBLIC, ("RS256",)),
        *((_PUBLIC | {"alg": alg}, (alg,)) for alg in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        (_elliptic(ec.SECP256R1()), ("ES256",)),
        (_elliptic(ec.SECP384R1()) | {"alg": "ES384"}, ("ES384",)),
        (_elliptic(ec.SECP521R1()), ("ES512",)),
        (_ED25519, ("EdDSA", "Ed25519")),
        (_ED25519 | {"alg": "EdDSA"}, ("EdDSA",)),
        (_ED25519 | {"alg": "Ed25519"}, ("Ed25519",)),
        (_PUBLIC | {"use": "sig", "key_ops": ["verify"]}, ("RS256",)),
    ],
)
def test_algorithms(entry: dict[str, Any], algorithms: tuple[str, ...]) -> None:
    """A key is bound to its `alg`; without one, to the algorithm of its type or curve."""
    keys, ignored = parse_jwks(_document(entry))
    assert [key.algorithms for key in keys.values()] == [algorithms]
    assert not ignored


_WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)


@pytest.mark.parametrize(
    ("reason", "entry"),
    [
        ("size", json.loads(RSAAlgorithm.to_jwk(_WEAK.public_key()))),
        ("size", _PUBLIC | {"n": "_" * 1366 + "w"}),  # 8202 bits
        ("private", json.loads(RSAAlgorithm.to_jwk(_RSA))),
        ("private", json.loads(ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1())))),
        ("private", json.loads(OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate()))),
        ("private", _PUBLIC | {"d": None}),
        ("symmetric", {"kty": "oct", "k": "c2VjcmV0"}),
        ("symmetric", _PUBLIC | {"k": "c2VjcmV0"}),
        ("use", _PUBLIC | {"use": "enc"}),
        ("use", _PUBLIC | {"use": None}),
        ("use", _PUBLIC | {"key_ops": ["encrypt"]}),
        ("use", _PUBLIC | {"key_ops": "verify"}),
        ("algorithm", _PUBLIC | {"alg": "ES256"}),
        ("algorithm", _PUBLIC | {"alg": "HS256"}),
        ("algorithm", _PUBLIC | {"alg": "none"}),
        ("algorithm", _PUBLIC | {"alg": None}),
        ("algorithm", _elliptic(ec.SECP256R1()) | {"alg": "ES384"}),
        ("algorithm", _elliptic(ec.SECP256K1())),
        ("algorithm", _without_key_ops(OKPAlgorithm.to_jwk(ed448.Ed448PrivateKey.generate().public_key()))),
        ("algorithm", {"kty": "new"}),
        ("malformed", _PUBLIC | {"n": "!"}),
        ("malformed", _PUBLIC | {"n": 1}),
        ("malformed", _PUBLIC | {"e": "AQ"}),
        ("malformed", {name: value for name, value in _PUBLIC.items() if name != "n"}),
        ("malformed", _PUBLIC | {"kid": 1}),
        ("malformed", _ED25519 | {"kty": "EC"}),
        ("malformed", {"kty": "EC", "crv": []}),
        ("malformed", _elliptic(ec.SECP256R1()) | {"x": _elliptic(ec.SECP256R1())["x"]}),  # a point that is not on the curve
        ("malformed", "key"),
        ("malformed", None),
    ],
)
def test_unusable_entries(reason: str, entry: Any) -> None:
    """An unusable entry is ignored with a fixed reason, and the other keys are used."""
    first, last = _PUBLIC | {"kid": "first"}, _PUBLIC | {"kid": "last"}
    keys, ignored = parse_jwks(_document(first, entry, last))
    assert set(keys) == {"first", "last"}
    assert ignored == {reason: 1}


def test_duplicate_ids() -> None:
    """Different keys with one id are not used; the same entry twice is one key."""
    keys, ignored = parse_jwks(_document(_PUBLIC, _PUBLIC | {"alg": "PS256"}, _ED25519 | {"kid": "other"}, _ED25519 | {"kid": "other"}))
    assert set(keys) == {"other"}
    assert ignored == {"duplicate kid": 2}


@pytest.mark.parametrize(
    "document", [b"", b"<html>", b"[]", b"1", b"null", b'{"keys": {}}', b'{"keys": null}', b"{}", b"\xff", b"[" * 100_000, b"1" * 5000]
)
def test_not_a_jwks(document: bytes) -> None:
    """A document that is not a JSON object with a list `keys` is an error."""
    with pytest.raises(InvalidJwks, match="not a JSON object with a list"):
        parse_jwks(document)


def test_empty_jwks() -> None:
    """A JWKS may have no keys."""
    assert parse_jwks(b'{"keys": []}') == ({}, {})
