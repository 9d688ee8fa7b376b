"""Certificate authorities for tests, and the certificate files that a server reloads.

The certificates pass strict verification (`ssl.VERIFY_X509_STRICT`), which is the default since CPython 3.13.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Pair(NamedTuple):
    """A certificate and its private key, in PEM."""

    cert: bytes
    key: bytes


class Authority:
    """Certificate authority for servers and clients."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject(name)
        extensions = [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (_key_usage(authority=True), True),
        ]
        self.cert = self._sign(self._name, self._key.public_key(), extensions)

    @property
    def own_pair(self) -> Pair:
        """The authority's own certificate and key."""
        return Pair(self.cert, _pem(self._key))

    def pair(
        self, name: str, *, alternative_names: Sequence[str] = ("localhost",), key: CertificateIssuerPrivateKeyTypes | None = None
    ) -> Pair:
        """Return a new certificate with the common name `name`.

        Args:
            alternative_names: IP addresses, URIs (with `://`) or DNS names.
            key: its private key; None for a new one.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        extensions = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(authority=False), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
            (x509.SubjectAlternativeName([_alternative_name(each) for each in alternative_names]), False),
        ]
        return Pair(self._sign(_subject(name), key.public_key(), extensions), _pem(key))

    def revocation_list(self, *revoked: bytes) -> bytes:
        """Return a certificate revocation list, in PEM, with these certificates."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(self._name, now - timedelta(hours=1), now + timedelta(days=1))
        builder = builder.add_extension(x509.CRLNumber(1), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        for cert in revoked:
            number = x509.load_pem_x509_certificate(cert).serial_number
            entry = x509.RevokedCertificateBuilder(number, now - timedelta(hours=1)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _sign(self, subject: x509.Name, key: CertificatePublicKeyTypes, extensions: Sequence[tuple[x509.ExtensionType, bool]]) -> bytes:
        """Return a PEM certificate; `extensions` are pairs of an extension and True if it is critical."""
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=key,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(days=1),
            not_valid_after=now + timedelta(days=1),
        )
        identifiers: list[tuple[x509.ExtensionType, bool]] = [
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False),
        ]
        for extension, critical in (*extensions, *identifiers):
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _pem(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


async def certificate_name(host: str, port: int, authority: Authority) -> str:
    """Return the common name in the certificate that the server presents to a new connection."""
    context = ssl.create_default_context(cadata=authority.cert.decode())
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="localhost")
    subject: Any = writer.get_extra_info("peercert")["subject"]
    # An orderly close would wait up to 30 s for the server's close_notify.
    writer.transport.abort()
    return str(subject[0][0][1])


class Files:
    """Certificate and key files of a server."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"

    def write(self, pair: Pair) -> None:
        self.cert.write_bytes(pair.cert)
        self.key.write_bytes(pair.key)

    def move(self, pair: Pair) -> None:
        """Replace both files by renaming, as certificate renewal tools do."""
        for file, data in zip((self.cert, self.key), pair, strict=True):
            new = file.with_suffix(".new")
            new.write_bytes(data)
            new.replace(file)

    @property
    def settings(self) -> dict[str, str]:
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, hostname: str) -> ssl.SSLObject:
    """Complete a TLS handshake in memory and return the server's side of it.

    Raises:
        ssl.SSLError: a side rejected the other.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client.wrap_bio(to_client, to_server, server_hostname=hostname), server_side]
    while waiting:
        for side in tuple(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                waiting.remove(side)
    return server_side
