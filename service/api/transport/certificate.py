"""The server's certificate, which is reloaded when its files change. New handshakes use it; connections are not affected.

OpenSSL checks the files. gRPC uses BoringSSL, which accepts less. It would reject a new certificate without any report, and continue to use
the previous one. Therefore forms of PEM and keys that only OpenSSL accepts are rejected, too.
"""

import codecs
import errno
import math
import ssl
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import PublicKeyAlgorithmOID

from service.errors import InvalidSettings
from service.observability import logs

# Keys of servers that BoringSSL can use.
_ALGORITHMS = (PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5, PublicKeyAlgorithmOID.EC_PUBLIC_KEY, PublicKeyAlgorithmOID.ED25519)
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


class TlsFiles(NamedTuple):
    """PEM files."""

    cert: Path
    """The certificate, followed by its intermediate certificates."""
    key: Path
    client_ca: Path | None = None
    """Authority of the certificates that clients must have; None if they need none."""


class ReloadedCertificate:
    """The last certificate and key in the files that belong together."""

    def __init__(self, files: TlsFiles) -> None:
        """
        Raises:
            InvalidSettings: a file cannot be read, or the files do not belong together.
        """
        self._files = files
        self._seen = self._versions()
        self._problem: str | None = None
        self.expires_at = math.nan
        """When the first certificate of the chain in use expires, in seconds since 1970; NaN if that cannot be read."""
        try:
            self._configuration = self._load()
        except OSError as exc:
            names = ["BACKUPS_TLS_CERT", "BACKUPS_TLS_KEY"] + ["BACKUPS_TLS_CLIENT_CA"] * (files.client_ca is not None)
            raise InvalidSettings(f"{', '.join(names)}: {_problem(exc)}") from None

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials with which gRPC calls `_current` for each handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._current,  # type: ignore[arg-type]  # gRPC takes None for an unchanged certificate
            require_client_authentication=self._files.client_ca is not None,
        )

    # test_a_new_pair and others in tests/api/test_certificate.py run this.
    def _current(self) -> grpc.ServerCertificateConfiguration | None:  # pragma: no cover  # in a thread of gRPC's core, which is not traced
        """Return the new certificate and key, or None if the files have not changed or do not belong together (yet)."""
        versions = self._versions()
        if versions == self._seen:
            return None
        try:
            configuration = self._load()
        except OSError as exc:
            if (problem := _problem(exc)) != self._problem:
                self._problem = problem
                logs.event("certificate not reloaded", level="warning", problem=problem)
            return None
        self._seen, self._problem = versions, None
        logs.event("certificate reloaded", path=str(self._files.cert))
        return configuration

    def _load(self) -> grpc.ServerCertificateConfiguration:
        """Read and check the files.

        Raises:
            OSError: a file cannot be used; `filename` is None if the certificate and the key do not belong together.
        """
        chain, key = _read_pem(self._files.cert), _read_pem(self._files.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._files.cert, self._files.key, password="")  # without it, OpenSSL prompts on the terminal
        certificates = _parsed(chain)
        if certificates and (problem := _key_problem(certificates[0])):
            raise _unusable(self._files.cert, problem)
        client_ca = _read_authorities(self._files.client_ca, context) if self._files.client_ca else None
        configuration = grpc.ssl_server_certificate_configuration([(key, chain)], client_ca)
        self.expires_at = min((each.not_valid_after_utc.timestamp() for each in certificates), default=math.nan)
        return configuration

    def _versions(self) -> list[tuple[int, int, int] | None]:
        """Return a value that changes when a file changes or a symbolic link in its path does."""
        return [_version(file) for file in self._files if file is not None]


def _version(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read_pem(file: Path) -> bytes:
    content = file.read_bytes()
    if content.startswith(codecs.BOM_UTF8):
        raise _unusable(file, "begins with a byte order mark, which gRPC does not accept: save the file without it")
    if b"-----BEGIN TRUSTED CERTIFICATE-----" in content:
        raise _unusable(file, f"contains a TRUSTED CERTIFICATE, which gRPC does not support: convert it (openssl x509 -in {file} -out NEW)")
    return content


def _read_authorities(file: Path, context: ssl.SSLContext) -> bytes:
    """Return a file with certificates of authorities, after `context` has loaded it."""
    content = _read_pem(file)
    try:
        context.load_verify_locations(cadata=content.decode("ascii", errors="backslashreplace"))  # comments may have other encodings
    except (ssl.SSLError, ValueError):
        raise _unusable(file, "not a PEM file with certificates") from None
    return content


def _parsed(chain: bytes) -> list[x509.Certificate]:
    """Return the certificates of a chain that OpenSSL has accepted, or none, because cryptography is stricter."""
    try:
        return x509.load_pem_x509_certificates(chain)
    except ValueError:
        return []


def _key_problem(certificate: x509.Certificate) -> str | None:
    """Return the reason why BoringSSL cannot use the key of a certificate, or None."""
    if certificate.public_key_algorithm_oid not in _ALGORITHMS:
        return "gRPC cannot use its key: use RSA, ECDSA or Ed25519"
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None  # cryptography is stricter
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _CURVES:
        return f"gRPC cannot use its key on the curve {key.curve.name}: use P-256, P-384 or P-521"
    return None


def _unusable(file: Path, problem: str) -> OSError:
    return OSError(errno.EINVAL, problem, str(file))


def _problem(exc: OSError) -> str:
    if exc.filename:
        return f"{exc.filename}: {exc.strerror}"
    return (
        f"the certificate and the key cannot be used together ({exc.strerror or exc.args[-1]}): "
        "both must be PEM, the server's certificate must be the first of its file, and the key must have no password"
    )
