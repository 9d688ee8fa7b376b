"""Issuer of valid and bad tokens, and an HTTP server for its keys."""

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from service.errors import Rejection

ISSUER, AUDIENCE = "https://issuer.test", "backups"


class Issuer:
    """Token issuer with RSA keys and an elliptic key."""

    def __init__(self, *kids: str) -> None:
        self.keys = {kid: rsa.generate_private_key(public_exponent=65537, key_size=2048) for kid in kids}
        self.elliptic = ec.generate_private_key(ec.SECP256R1())

    def jwks(self, *kids: str, elliptic: bool = True, **changes: Any) -> bytes:
        """Return a JWKS with the RSA keys of these ids, or all of them, and by default an elliptic key."""
        entries = [
            json.loads(RSAAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"} | changes
            for kid, key in self.keys.items()
            if kid in (kids or self.keys)
        ]
        if elliptic:
            entries.append(json.loads(ECAlgorithm.to_jwk(self.elliptic.public_key())) | {"kid": "elliptic"})
        return json.dumps({"keys": entries}).encode()

    def token(
        self, kid: str, *, algorithm: str = "RS256", named: str | None = None, headers: Mapping[str, Any] | None = None, **claims: Any
    ) -> str:
        """Return a token that is valid except for the given values. A claim or header field of None is left out."""
        now = int(time.time())
        everything = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 600, "sub": "client", "folders": ["f1"]} | claims
        header = {"alg": algorithm, "kid": kid if named is None else named, "typ": "JWT"} | dict(headers or {})
        return self.signed(kid, _json(_present(header)), _json(_present(everything)), algorithm=algorithm)

    def signed(self, kid: str, header: str, claims: str, *, algorithm: str = "RS256") -> str:
        """Return a token with this header and these claims, signed with the key `kid`."""
        signing_input = f"{_segment(header.encode())}.{_segment(claims.encode())}"
        signature = jwt.get_algorithm_by_name(algorithm).sign(signing_input.encode(), self.keys[kid])
        return f"{signing_input}.{_segment(signature)}"


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"))


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _none_algorithm(issuer: Issuer) -> str:
    _, claims, _ = issuer.token("k1").split(".")
    unsigned = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "k1"}).encode()).rstrip(b"=").decode()
    return f"{unsigned}.{claims}."


def _signed_with_the_public_key(issuer: Issuer) -> str:
    """Return a token signed by HS256 with the public key as the secret. PyJWT refuses to sign with such a secret."""
    public = issuer.keys["k1"].public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _, claims, _ = issuer.token("k1").split(".")
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "k1"}).encode()).rstrip(b"=").decode()
    mac = hmac.new(public, f"{header}.{claims}".encode(), hashlib.sha256).digest()
    return f"{header}.{claims}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


class BadToken(NamedTuple):
    """A token that must be rejected, and the reason that is logged."""

    make: Callable[[Issuer], str]
    reason: Rejection


def _changed(reason: Rejection, **changes: Any) -> BadToken:
    return BadToken(lambda issuer: issuer.token("k1", **changes), reason)


BAD_TOKENS: dict[str, BadToken] = {
    "empty": BadToken(lambda _: "", "malformed"),
    "opaque, as those of IAM": BadToken(lambda _: "t1.9euelZq", "malformed"),
    "nonsense": BadToken(lambda _: "a.b.c", "malformed"),
    "header that is not an object": BadToken(lambda issuer: issuer.signed("k1", "[]", "{}"), "malformed"),
    "unterminated header": BadToken(lambda issuer: issuer.signed("k1", "[" * 700, "{}"), "malformed"),
    "claims that are not an object": BadToken(lambda issuer: issuer.signed("k1", '{"alg": "RS256", "kid": "k1"}', "[]"), "malformed"),
    "no algorithm": BadToken(_none_algorithm, "algorithm"),
    "HS with the public key": BadToken(_signed_with_the_public_key, "algorithm"),
    "another algorithm": _changed("algorithm", algorithm="PS256"),
    "algorithm of a wrong type": _changed("malformed", headers={"alg": ["RS256"]}),
    "another type": _changed("type", headers={"typ": "logout+jwt"}),
    "critical extension": _changed("malformed", headers={"crit": ["exp"]}),
    "unencoded payload": _changed("malformed", headers={"crit": ["b64"], "b64": False}),
    "key id of a wrong type": _changed("malformed", headers={"kid": ["k1"]}),
    "another key": BadToken(lambda issuer: issuer.token("k2", named="k1"), "signature"),
    "unknown key": BadToken(lambda issuer: issuer.token("k2"), "key"),
    "key of another type": _changed("algorithm", named="elliptic"),
    "another issuer": _changed("issuer", iss="https://other.test"),
    "no issuer": _changed("issuer", iss=None),
    "another audience": _changed("audience", aud="others"),
    "no audience": _changed("audience", aud=None),
    "expired": BadToken(lambda issuer: issuer.token("k1", exp=int(time.time()) - 60), "expired"),
    "no expiry": _changed("claims", exp=None),
    "expiry that is a string": BadToken(lambda issuer: issuer.token("k1", exp=str(int(time.time()) + 60)), "claims"),
    "infinite expiry": _changed("malformed", exp=float("inf")),
    "expiry that is not a number": _changed("malformed", exp=float("nan")),
    "distant expiry": _changed("lifetime", exp=10**400),
    "not valid yet": BadToken(lambda issuer: issuer.token("k1", nbf=int(time.time()) + 60), "early"),
    "subject of a wrong type": _changed("claims", sub=1),
    "folders of a wrong type": _changed("claims", folders={"f1": 1}),
    "folders that are not strings": _changed("claims", folders=[1]),
    "tampered with": BadToken(lambda issuer: issuer.token("k1")[:-2] + "AA", "signature"),
}


def _handler(source: "Source") -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        """Handler that returns the response of `source`."""

        def do_GET(self) -> None:
            source.requests += 1
            if source.response is None:
                source.released.wait(20)  # hangs
                return
            status, body = source.response
            source.received = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(status)
            for name, value in source.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if pause := source.pause:
                with contextlib.suppress(OSError):  # the client closed the connection
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(pause)
            else:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class Source:
    """HTTP server that returns the given response and counts its requests."""

    def __init__(self) -> None:
        self.response: tuple[int, bytes] | None = (500, b"")
        self.headers: dict[str, str] = {}
        self.received: dict[str, str] = {}
        """Headers of the last request, with names in lower case."""
        self.requests = 0
        self.pause = 0.0
        """Seconds to wait after each byte."""
        self.released = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/jwks"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
