"""The commands of docs/quick-start-secured.md that create keys, certificates and a token."""

import os
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.catalog import AddBackups
from tests.support.commands import RunCommand
from tests.support.quick_start import HOST, run_before_start
from tests.support.server import StartServer


@pytest.fixture(name="home", scope="module")
async def _home() -> AsyncIterator[Path]:
    """Yield a folder in which the commands before `docker compose` have run; its folder `etc` is a substitute for /etc."""
    with tempfile.TemporaryDirectory(prefix="backups-quick-start-", dir="/tmp") as name:
        home = Path(name)
        home.chmod(0o755)  # other users can reach it, unlike pytest's own folders
        await run_before_start(home)
        yield home


async def test_modes(home: Path) -> None:
    """Only root can read the keys and the token, only Envoy's user reads Envoy's key, and every user the JWKS and the authority."""
    keys, installed = home / "backup-service-keys", home / "etc" / "backups"
    secrets = ("authority.key", "envoy.key", "signing.key", "token", "signed.part")
    assert {(keys / name).stat().st_mode & 0o777 for name in secrets} == {0o600}
    assert (installed / "tls" / "tls.key").stat().st_mode & 0o777 == 0o400
    assert {(installed / name).stat().st_mode & 0o777 for name in ("authority.crt", "jwks/jwks.json")} == {0o644}
    if os.getuid() == 0:
        for user, file, status in (
            (101, "tls/tls.key", 0),
            (10001, "tls/tls.key", 1),
            (10001, "jwks/jwks.json", 0),
            (65534, "authority.crt", 0),
        ):
            done = await processes.run("cat", installed / file, user=user, group=user, extra_groups=[])
            assert done.returncode == status, (user, file)


async def test_server_with_the_credentials(home: Path, start_server: StartServer, command: RunCommand, add_backups: AddBackups) -> None:
    """A server with the certificate and the JWKS answers a client with the authority and the token, for the token's folder only."""
    await add_backups(1, folder_id="demo-folder")
    installed = home / "etc" / "backups"
    settings = {
        "auth": "jwt",
        "jwks": str(installed / "jwks" / "jwks.json"),
        "jwt_issuer": f"https://{HOST}",
        "jwt_audience": "greenplum-backups",
        "tls_cert": str(installed / "tls" / "tls.crt"),
        "tls_key": str(installed / "tls" / "tls.key"),
    }
    async with start_server(**settings) as server:
        options = ("--address", f"127.0.0.1:{server.address.port}", "--server-name", HOST, "--ca-file", str(installed / "authority.crt"))
        token = ("--token-file", str(home / "backup-service-keys" / "token"))
        listed = await command("list", "--folder-id", "demo-folder", *options, *token)
        assert (listed.status, listed.stderr, listed.stdout.count("\n")) == (0, "", 2)
        assert "PERMISSION_DENIED" in (await command("list", "--folder-id", "another", *options, *token)).stderr
        assert "UNAUTHENTICATED" in (await command("list", "--folder-id", "demo-folder", *options)).stderr


async def test_certificates_are_strict(home: Path) -> None:
    """The certificates pass strict verification for the public host name."""
    keys = home / "backup-service-keys"
    options = ("-x509_strict", "-purpose", "sslserver", "-verify_hostname", HOST, "-CAfile", keys / "authority.crt")
    done = await processes.run("openssl", "verify", *options, keys / "envoy.crt")
    assert re.search(rb"envoy.crt: OK\n", done.stdout), done.stderr
