"""An issuer of tokens."""

import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.test", "backups"


class Issuer:
    """Signs tokens, and publishes its keys."""

    def __init__(self, *kids: str) -> None:
        self.keys = {kid: rsa.generate_private_key(public_exponent=65537, key_size=2048) for kid in kids}
        self.elliptic = ec.generate_private_key(ec.SECP256R1())

    def jwks(self, *kids: str, **changes: Any) -> bytes:
        """The set of these keys, of all without names."""
        entries = [
            json.loads(RSAAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"} | changes
            for kid, key in self.keys.items()
            if kid in (kids or self.keys)
        ]
        entries.append(json.loads(ECAlgorithm.to_jwk(self.elliptic.public_key())) | {"kid": "elliptic"})  # not of the family
        return json.dumps({"keys": entries}).encode()

    def token(self, kid: str, *, algorithm: str = "RS256", named: str | None = None, **claims: Any) -> str:
        """A token that is good but for what is given; a claim of None is left out."""
        now = int(time.time())
        everything = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 600, "sub": "somebody", "folders": ["f1"]} | claims
        present = {name: value for name, value in everything.items() if value is not None}
        return jwt.encode(present, self.keys[kid], algorithm=algorithm, headers={"kid": kid if named is None else named})
