"""An issuer of tokens, good and bad, and where its keys are read."""

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
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


def _none_algorithm(issuer: Issuer) -> str:
    _, claims, _ = issuer.token("k1").split(".")
    unsigned = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "k1"}).encode()).rstrip(b"=").decode()
    return f"{unsigned}.{claims}."


def _signed_with_the_public_key(issuer: Issuer) -> str:
    """HS256, the secret being what everybody knows: by hand, since libraries refuse to."""

    public = issuer.keys["k1"].public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _, claims, _ = issuer.token("k1").split(".")
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "k1"}).encode()).rstrip(b"=").decode()
    mac = hmac.new(public, f"{header}.{claims}".encode(), hashlib.sha256).digest()
    return f"{header}.{claims}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


BAD_TOKENS: dict[str, Callable[[Issuer], str]] = {
    "empty": lambda _: "",
    "opaque, as IAM's": lambda _: "t1.9euelZq",
    "nonsense": lambda _: "a.b.c",
    "no algorithm": _none_algorithm,
    "HS with the public key": _signed_with_the_public_key,
    "another family": lambda issuer: issuer.token("k1", algorithm="PS256"),
    "another key": lambda issuer: issuer.token("k2", named="k1"),
    "unknown key": lambda issuer: issuer.token("k2"),
    "key of another type": lambda issuer: issuer.token("k1", named="elliptic"),
    "another issuer": lambda issuer: issuer.token("k1", iss="https://other.test"),
    "no issuer": lambda issuer: issuer.token("k1", iss=None),
    "another audience": lambda issuer: issuer.token("k1", aud="others"),
    "no audience": lambda issuer: issuer.token("k1", aud=None),
    "expired": lambda issuer: issuer.token("k1", exp=int(time.time()) - 60),
    "without end": lambda issuer: issuer.token("k1", exp=None),
    "not valid yet": lambda issuer: issuer.token("k1", nbf=int(time.time()) + 60),
    "folders of a wrong type": lambda issuer: issuer.token("k1", folders={"f1": 1}),
    "folders that are no texts": lambda issuer: issuer.token("k1", folders=[1]),
    "tampered with": lambda issuer: issuer.token("k1")[:-2] + "AA",
    "too long": lambda issuer: issuer.token("k1", folders=["f" * 9_300]),
}


class Source:
    """An HTTP server that answers with what it is told, and counts how often it was asked."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] | None = (500, b"")
        self.asked = 0
        self.pause = 0.0
        """Seconds after each byte."""
        self.released = threading.Event()
        source = self

        class Handler(http.server.BaseHTTPRequestHandler):
            """Answers."""

            def do_GET(self) -> None:
                source.asked += 1
                if source.answer is None:
                    source.released.wait(20)  # hangs
                    return
                status, body = source.answer
                self.send_response(status)
                self.end_headers()
                if pause := source.pause:
                    with contextlib.suppress(OSError):  # it was given up
                        for byte in body:
                            self.wfile.write(bytes([byte]))
                            time.sleep(pause)
                else:
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/jwks"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
