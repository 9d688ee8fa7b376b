"""Independent verification of tokens by joserfc, which shares no code with PyJWT."""

import json
import time
import warnings
from typing import Any

from joserfc import jwt
from joserfc.jwk import import_key
from joserfc.jws import JWSRegistry

from tests.support.tokens import AUDIENCE, ISSUER

_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
_REGISTRY = JWSRegistry(algorithms=_ALGORITHMS, strict_check_header=False)  # unknown fields are ignored (RFC 7515, section 4)
_REGISTRY.max_header_length, _REGISTRY.max_payload_length, _REGISTRY.max_signature_length = 1024, 12 * 1024, 12 * 1024
_LEEWAY_S = 6  # one more than the service's, because joserfc reads the clock later


def is_accepted(token: str, jwks: bytes) -> bool:
    """Return True if joserfc accepts a token with a key of the JWKS that has its `kid`."""
    return any(_is_verified_by(token, entry) for entry in json.loads(jwks)["keys"])


def _is_verified_by(token: str, entry: Any) -> bool:
    rules: Any = {"iss": {"essential": True, "value": ISSUER}, "aud": {"essential": True, "value": AUDIENCE}, "exp": {"essential": True}}
    try:
        with warnings.catch_warnings(action="ignore"):  # joserfc warns of EdDSA, the old name of Ed25519
            found = jwt.decode(token, import_key(entry), algorithms=_ALGORITHMS, registry=_REGISTRY)
        jwt.JWTClaimsRegistry(now=int(time.time()), leeway=_LEEWAY_S, **rules).validate(found.claims)
    except Exception:  # joserfc rejects bad values with errors of many types
        return False
    return bool(found.header.get("kid", entry.get("kid")) == entry.get("kid"))
