"""The server's certificate, which is reloaded when its files change. New handshakes use it; connections are not affected."""

import errno
import math
import ssl
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509

from service.errors import InvalidSettings
from service.observability import logs


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
        except (OSError, ssl.SSLError) as exc:
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
        except (OSError, ssl.SSLError) as exc:
            if (problem := _problem(exc)) != self._problem:
                self._problem = problem
                logs.event("certificate not reloaded", level="warning", problem=problem)
            return None
        self._seen, self._problem = versions, None
        logs.event("certificate reloaded", path=str(self._files.cert))
        return configuration

    def _load(self) -> grpc.ServerCertificateConfiguration:
        # OpenSSL checks that certificate and key belong together. gRPC would fail later, in the handshake.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._files.cert, self._files.key, password="")  # without it, OpenSSL prompts on the terminal
        client_ca = self._files.client_ca.read_bytes() if self._files.client_ca else None
        if client_ca is not None:
            try:
                context.load_verify_locations(cadata=client_ca.decode("ascii"))
            except (ssl.SSLError, ValueError):
                raise OSError(errno.EINVAL, "not a PEM file with certificates", str(self._files.client_ca)) from None
        chain = self._files.cert.read_bytes()
        configuration = grpc.ssl_server_certificate_configuration([(self._files.key.read_bytes(), chain)], client_ca)
        self.expires_at = _expires_at(chain)
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


def _expires_at(chain: bytes) -> float:
    try:
        return min(certificate.not_valid_after_utc.timestamp() for certificate in x509.load_pem_x509_certificates(chain))
    except ValueError:  # cryptography is stricter than OpenSSL, which has accepted the file
        return math.nan


def _problem(exc: OSError) -> str:
    return (
        f"{exc.filename}: {exc.strerror}"
        if exc.filename
        else f"the certificate and the key cannot be used together ({exc.strerror or exc.args[-1]})"
    )
