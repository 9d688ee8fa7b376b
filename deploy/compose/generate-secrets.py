"""Generates the passwords of docker-compose.yml and PostgreSQL's certificate at the first start; later starts keep them.

The process is root without capabilities, in the group of the image's user. Its files are readable by that group and by no one else.
The certificate is its own authority: each client container trusts this one certificate. Only deploy/compose-secured.yaml uses it.
"""

import datetime as dt
import os
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

FOLDER = Path("/run/secrets")
ROLES = {"owner": "backups_owner", "import": "backups_import", "service": "backups_service"}
HOSTS = ["postgres", "postgres-2"]  # the second node of deploy/compose-patroni.yaml
LIFETIME = dt.timedelta(days=3650)


def write(file: Path, content: bytes) -> None:
    """Write a file as a whole: an interrupted start leaves no partial secret."""
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o440), "wb") as opened:
        opened.write(content)
        os.fsync(opened.fileno())
    new.replace(file)


def write_passwords() -> None:
    for name in ("superuser", "replication", "patroni"):
        if not (file := FOLDER / "postgres" / name).exists():
            write(file, secrets.token_hex(32).encode())
    for folder, role in ROLES.items():
        if not (file := FOLDER / folder / "pgpass").exists():
            write(file, f"*:*:*:{role}:{secrets.token_hex(32)}\n".encode())


def write_certificate() -> None:
    """Write PostgreSQL's key and certificate, and the certificate again for each role that connects."""
    key_file, certificate_file = FOLDER / "postgres" / "tls.key", FOLDER / "postgres" / "tls.crt"
    if not certificate_file.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        write(key_file, pem)
        write(certificate_file, self_signed(key))
    for folder in ROLES:
        write(FOLDER / folder / "ca.crt", certificate_file.read_bytes())


def self_signed(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTS[0])])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + LIFETIME)
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False)
    usage |= {"digital_signature": True, "key_cert_sign": True, "encipher_only": False, "decipher_only": False}
    for extension, critical in (
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (x509.KeyUsage(**usage), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


if __name__ == "__main__":
    write_passwords()
    write_certificate()
