"""The commands of docs/certificates.md."""

import os
import re
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import handshake
from tests.support.repository import ROOT

_COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "certificates.md").read_text(encoding="utf-8"), re.DOTALL))
_ENVOY, _SERVICE, _POSTGRES, _OTHER = 101, 10001, 70, 65534


@pytest.fixture(name="machine", scope="module")
def _machine() -> Iterator[Path]:
    """Yield a folder in which the page's commands have run, with `etc` as a substitute for /etc."""
    folder = Path(tempfile.mkdtemp(prefix="backups-certificates-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "etc" / "postgresql").mkdir(parents=True)
    commands = _COMMANDS.replace("/etc/", f"{folder}/etc/")
    if os.getuid() != 0:
        commands = re.sub(r" -o \w+ -g \w+", "", commands)
    # The user `postgres` exists only if Debian's PostgreSQL is installed.
    commands = commands.replace("-o postgres -g postgres", f"-o {_POSTGRES} -g {_POSTGRES}")
    done = subprocess.run(["/bin/sh", "-euc", commands], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("envoy", "backups.example.org"),
        ("service", "service.backups.svc"),
        ("service", "localhost"),
        ("postgres", "db1.example.org"),
        ("postgres", "192.0.2.10"),
    ],
)
def test_certificates_pass_strict_verification(machine: Path, name: str, host: str) -> None:
    """A strict client accepts each server's certificate for its hosts, and a strict server accepts the client's certificate."""
    authority = str(machine / "authority.crt")
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(machine / f"{name}.crt", machine / f"{name}.key")
    server_context.load_verify_locations(authority)
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.verify_flags |= ssl.VERIFY_X509_STRICT
    client_context = ssl.create_default_context(cafile=authority)
    client_context.load_cert_chain(machine / "client.crt", machine / "client.key")
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT

    assert _accepted_client(client_context, server_context, host) == "client"


def _accepted_client(client_context: ssl.SSLContext, server_context: ssl.SSLContext, host: str) -> str:
    """Return the client certificate's common name after a TLS handshake."""
    certificate = handshake(client_context, server_context, host).getpeercert()
    assert certificate
    subject = dict(pair for names in certificate["subject"] for pair in names)  # type: ignore[misc]
    return str(subject["commonName"])


@pytest.mark.parametrize(
    ("name", "key", "user"),
    [
        ("envoy", "backups/tls/tls.key", _ENVOY),
        ("service", "backups/service/tls.key", _SERVICE),
        ("postgres", "postgresql/server.key", _POSTGRES),
    ],
)
def test_only_the_process_reads_its_key(machine: Path, name: str, key: str, user: int) -> None:
    """The user of the process can read the installed key and certificate, and other users cannot read the key."""
    file = machine / "etc" / key
    assert file.stat().st_mode & 0o777 == 0o400
    assert file.read_bytes() == (machine / f"{name}.key").read_bytes()
    if os.getuid() != 0:
        return
    assert file.stat().st_uid == user
    assert _can_read(file, user)
    assert _can_read(file.with_suffix(".crt"), user)
    assert not _can_read(file, _OTHER)


def _can_read(file: Path, user: int) -> bool:
    """Return True if a process of the user can read the file."""
    done = subprocess.run(["cat", file], user=user, group=user, extra_groups=[], capture_output=True, check=False)
    return done.returncode == 0


def test_clients_read_the_authority(machine: Path) -> None:
    """Every user can read the authority's certificate, and only its creator the keys in the working folder."""
    assert (machine / "etc" / "backups" / "authority.crt").stat().st_mode & 0o777 == 0o644
    assert {file.stat().st_mode & 0o777 for file in machine.glob("*.key")} == {0o600}
    if os.getuid() == 0:
        assert _can_read(machine / "etc" / "backups" / "authority.crt", _OTHER)
        assert not _can_read(machine / "authority.key", _OTHER)
