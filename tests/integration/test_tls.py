"""TLS to PostgreSQL: verification, error messages, and files that are replaced while the service runs."""

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from service.database_url import parse_database_url
from service.dev.embedded_postgres import EmbeddedPostgres, server_user
from service.errors import CatalogUnavailable, ConnectFailed
from service.postgres.connect.hosts import Hosts
from service.postgres.database import Limits, open_database
from service.postgres.migration import Roles, migrate
from tests.support.catalog import OWNER
from tests.support.certificates import Authority, Pair
from tests.support.commands import DATABASE_COMMANDS, RunCommand
from tests.support.eventually import eventually
from tests.support.ports import free_ports
from tests.support.postgres import temporary_folder
from tests.support.server import start

_PROGRAMS = Path("/usr/lib/postgresql/15/bin")  # the embedded PostgreSQL is built without TLS
_LIMITS = Limits(pool_size=2, connect=timedelta(seconds=3), acquire=timedelta(seconds=5), statement=timedelta(seconds=10))
_HBA = """
local all all trust
hostssl all certified 127.0.0.1/32 cert
hostssl all all 127.0.0.1/32 scram-sha-256
"""
_PASSWORD = "hunter2"

pytestmark = pytest.mark.debian("postgresql-15", program=str(_PROGRAMS / "postgres"))


class TlsPostgres(NamedTuple):
    """A PostgreSQL that accepts TCP connections over TLS only."""

    postgres: EmbeddedPostgres
    port: int
    authority: Authority
    root_cert: Path

    def url(self, query: str = "", *, user: str = Roles().service, host: str = "0.0.0.0", password: str = _PASSWORD) -> str:
        """Return a URL over TCP. 0.0.0.0 reaches this machine, and is not a local host, so that the default is verify-full."""
        return f"postgresql://{user}:{password}@{host}:{self.port}/postgres?{query}"

    @property
    def verified(self) -> str:
        return f"sslrootcert={self.root_cert}"


def _write(file: Path, data: bytes, *, owner: int, mode: int = 0o600) -> None:
    file.write_bytes(data)
    file.chmod(mode)
    os.chown(file, owner, -1)


@pytest.fixture(name="tls_postgres", scope="module")
def _tls_postgres() -> Iterator[TlsPostgres]:
    with temporary_folder() as folder:
        [port], authority = free_ports(1), Authority()
        files = {each: folder / each for each in ("tls.crt", "tls.key", "ca.crt", "pg_hba.conf")}
        settings = {
            "fsync": "off",
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "ssl": "on",
            "ssl_cert_file": str(files["tls.crt"]),
            "ssl_key_file": str(files["tls.key"]),
            "ssl_ca_file": str(files["ca.crt"]),
            "hba_file": str(files["pg_hba.conf"]),
        }
        postgres = EmbeddedPostgres(folder / "postgres", settings=settings, programs=_PROGRAMS)
        pair = authority.pair("postgres", alternative_names=("localhost", "127.0.0.1", "0.0.0.0"))
        for file, data in zip(files.values(), (*pair, authority.cert, _HBA.encode()), strict=True):
            _write(file, data, owner=server_user().pw_uid)
        _write(folder / "root.crt", authority.cert, owner=os.getuid(), mode=0o644)
        with postgres.running():
            server = TlsPostgres(postgres, port, authority, folder / "root.crt")
            _create_roles(server)
            yield server
        postgres.remove()


def _create_roles(server: TlsPostgres) -> None:
    roles = [f"CREATE ROLE {role} LOGIN PASSWORD '{_PASSWORD}'" for role in (OWNER, *Roles())]
    grants = ["CREATE ROLE certified LOGIN", f"GRANT CREATE ON SCHEMA public TO {OWNER}"]

    async def create() -> None:
        connection = await asyncpg.connect(server.postgres.url("postgres").replace("port=5432", f"port={server.port}"))
        await connection.execute("; ".join(roles + grants))
        await connection.close()

    asyncio.run(create())
    migrate(server.url(server.verified, user=OWNER))


async def _connected(url: str) -> asyncpg.Connection:
    connection: asyncpg.Connection = await Hosts(parse_database_url(url)).connect(timeout=5, server_settings={})
    return connection


async def _is_encrypted(url: str) -> bool:
    connection = await _connected(url)
    try:
        return bool(await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
    finally:
        await connection.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
@pytest.mark.parametrize("mode", ["verify-full", "verify-ca", "require"])
async def test_modes(tls_postgres: TlsPostgres, host: str, mode: str) -> None:
    """Every mode with TLS connects to a server whose certificate is signed by the authority."""
    assert await _is_encrypted(tls_postgres.url(f"sslmode={mode}&{tls_postgres.verified}", host=host))


async def test_default(tls_postgres: TlsPostgres) -> None:
    """A host that is not local is verified without an sslmode; a local one is reached without TLS, which this server rejects."""
    assert await _is_encrypted(tls_postgres.url(tls_postgres.verified))
    with pytest.raises(ConnectFailed, match="no encryption"):
        await _connected(tls_postgres.url(tls_postgres.verified, host="127.0.0.1"))


@pytest.mark.parametrize("query", ["", "sslrootcert=system"])
async def test_authorities_of_the_system(tls_postgres: TlsPostgres, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    """Without sslrootcert, or with `system`, the system's authorities are trusted, and no others."""
    with pytest.raises(ConnectFailed, match="the certificate is not trusted"):
        await _connected(tls_postgres.url(query))
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_postgres.root_cert))  # OpenSSL's own variable for them
    assert await _is_encrypted(tls_postgres.url(query))


async def test_require_verifies_nothing(tls_postgres: TlsPostgres) -> None:
    """`require` alone encrypts, and with sslrootcert verifies the authority, as in libpq."""
    assert await _is_encrypted(tls_postgres.url("sslmode=require"))
    with pytest.raises(ConnectFailed, match="the certificate is not trusted"):
        await _connected(tls_postgres.url(f"sslmode=require&sslrootcert={_other_authority(tls_postgres)}"))


def _other_authority(server: TlsPostgres) -> Path:
    file = server.root_cert.with_name("other.crt")
    file.write_bytes(Authority("other").cert)
    return file


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("sslrootcert={folder}/tls.key", "sslrootcert .* cannot be used"),
        ("sslrootcert=/nowhere/ca.crt", "sslrootcert /nowhere/ca.crt cannot be used: No such file or directory"),
        ("sslrootcert={folder}/root.crt&sslcrl=/nowhere/crl", "sslcrl /nowhere/crl cannot be used: No such file or directory"),
        ("sslrootcert={folder}/root.crt&sslcert=/nowhere/c&sslkey=/nowhere/k", "/nowhere/k cannot be read: No such file or directory"),
        ("sslrootcert={folder}/root.crt&sslcert=/nowhere/c&sslkey={folder}/tls.key", "sslcert /nowhere/c and its key cannot be used"),
        ("ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2", r"TLS with 0\.0\.0\.0:\d+ failed"),
    ],
)
async def test_errors(tls_postgres: TlsPostgres, query: str, message: str) -> None:
    """The error names the file that cannot be used, or the server."""
    with pytest.raises(ConnectFailed, match=message):
        await _connected(tls_postgres.url(query.format(folder=tls_postgres.root_cert.parent)))


async def test_certificate_of_another_host(tls_postgres: TlsPostgres) -> None:
    """A certificate for another host is rejected by verify-full, and accepted by verify-ca."""
    await _replace_certificate(tls_postgres, tls_postgres.authority.pair("other", alternative_names=("other.example.org",)))
    try:
        with pytest.raises(ConnectFailed, match=r"TLS with 0\.0\.0\.0:\d+: the certificate is not trusted: IP address mismatch"):
            await _connected(tls_postgres.url(tls_postgres.verified))
        with pytest.raises(ConnectFailed, match="the certificate is not trusted: Hostname mismatch"):
            await _connected(tls_postgres.url(f"{tls_postgres.verified}&sslmode=verify-full", host="localhost"))
        assert await _is_encrypted(tls_postgres.url(f"sslmode=verify-ca&{tls_postgres.verified}"))
    finally:
        await _replace_certificate(
            tls_postgres, tls_postgres.authority.pair("postgres", alternative_names=("localhost", "127.0.0.1", "0.0.0.0"))
        )


async def _replace_certificate(server: TlsPostgres, pair: Pair) -> None:
    for name, data in zip(("tls.crt", "tls.key"), pair, strict=True):
        _write(server.root_cert.with_name(name), data, owner=server_user().pw_uid)
    server.postgres.run("pg_ctl", "reload", "-D", server.postgres.data)

    async def server_certificate() -> bytes:
        connection: Any = await _connected(server.url("sslmode=require"))
        certificate: bytes = connection._transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        await connection.close()
        return certificate

    await eventually(server_certificate, ssl.PEM_cert_to_DER_cert(pair.cert.decode()))


async def test_revoked_certificate(tls_postgres: TlsPostgres) -> None:
    """With sslcrl, a server whose certificate is revoked is rejected, and one whose certificate is not revoked is accepted."""
    crl = tls_postgres.root_cert.with_name("root.crl")
    url = tls_postgres.url(f"{tls_postgres.verified}&sslcrl={crl}")
    crl.write_bytes(tls_postgres.authority.revocation_list())
    assert await _is_encrypted(url)
    crl.write_bytes(tls_postgres.authority.revocation_list(tls_postgres.root_cert.with_name("tls.crt").read_bytes()))
    with pytest.raises(ConnectFailed, match="the certificate is not trusted: certificate revoked"):
        await _connected(url)


async def test_several_hosts(tls_postgres: TlsPostgres) -> None:
    """If a host cannot be verified, the next one is used."""
    url = f"postgresql://{Roles().service}:{_PASSWORD}@localhost:1,0.0.0.0:{tls_postgres.port}/postgres?{tls_postgres.verified}"
    async with open_database(url, _LIMITS) as database:
        assert (await database.fetch("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))[0][0]


async def test_client_certificates(tls_postgres: TlsPostgres) -> None:
    """A role that needs a client certificate connects with sslcert and sslkey; a key that all users may read is rejected."""
    folder = tls_postgres.root_cert.parent
    pair = tls_postgres.authority.pair("certified")
    cert, key = folder / "client.crt", folder / "client.key"
    cert.write_bytes(pair.cert)
    _write(key, pair.key, owner=os.getuid(), mode=0o640)
    url = tls_postgres.url(f"{tls_postgres.verified}&sslcert={cert}&sslkey={key}", user="certified", password="")
    assert await _is_encrypted(url)
    key.chmod(0o644)
    with pytest.raises(ConnectFailed, match="client.key is accessible to all users"):
        await _connected(url)
    with pytest.raises(ConnectFailed, match="requires a valid client certificate"):
        await _connected(tls_postgres.url(tls_postgres.verified, user="certified"))


@pytest.mark.parametrize("arguments", DATABASE_COMMANDS)
async def test_every_command_reports_errors_of_tls(tls_postgres: TlsPostgres, command: RunCommand, arguments: list[str]) -> None:
    """Every command verifies the server, and reports a certificate that is not trusted as such."""
    done = await command(*arguments, stdin=b"[]", BACKUPS_DATABASE_URL=tls_postgres.url())
    assert done.status == 1
    assert f"TLS with 0.0.0.0:{tls_postgres.port}: the certificate is not trusted" in done.stderr
    assert done.stderr.count("\n") == 1
    assert _PASSWORD not in done.stderr


async def test_every_command_warns(tls_postgres: TlsPostgres, command: RunCommand) -> None:
    """An explicit sslmode=require works, with a warning on standard error, and does not warn of a local host."""
    done = await command("status", BACKUPS_DATABASE_URL=tls_postgres.url("sslmode=require"))
    assert done.status == 0
    assert f"backup-service: warning: sslmode=require does not verify the identity of 0.0.0.0:{tls_postgres.port}" in done.stderr
    done = await command("status", BACKUPS_DATABASE_URL=tls_postgres.url(f"sslmode=verify-full&{tls_postgres.verified}"))
    assert "warning" not in done.stderr


async def test_the_server_reports_errors_of_tls(tls_postgres: TlsPostgres, capfd: pytest.CaptureFixture[str]) -> None:
    """A server whose database is not trusted starts, is not ready, and logs the reason."""
    server = await start(database_url=tls_postgres.url(), listen="127.0.0.1:0", drain_delay="0")
    try:
        logged: list[str] = []

        def read() -> str:
            logged.append(capfd.readouterr().err)
            return "".join(logged)

        await eventually(read, lambda text: "the certificate is not trusted" in text)
        assert not server.health.serving
    finally:
        await server.shutdown()


async def test_a_password_file_is_replaced_while_the_pool_is_open(tls_postgres: TlsPostgres, tmp_path: Path) -> None:
    """The password file and sslrootcert are read for every connection: replaced files are used by the next one."""
    passfile, root_cert = tmp_path / "pgpass", tmp_path / "ca.crt"
    _write(passfile, b"*:*:*:*:wrong", owner=os.getuid(), mode=0o640)
    _write(root_cert, Authority("other").cert, owner=os.getuid())
    url = f"postgresql://{Roles().service}@0.0.0.0:{tls_postgres.port}/postgres?passfile={passfile}&sslrootcert={root_cert}"
    async with open_database(url, _LIMITS) as database:
        with pytest.raises(CatalogUnavailable, match="the certificate is not trusted"):
            await database.fetch("SELECT 1")
        shutil.copy(tls_postgres.root_cert, root_cert)
        with pytest.raises(CatalogUnavailable, match='rejected the password of role "backups_service"'):
            await database.fetch("SELECT 1")
        _write(tmp_path / "new", f"*:*:*:{Roles().service}:{_PASSWORD}".encode(), owner=os.getuid(), mode=0o640)
        (tmp_path / "new").replace(passfile)
        assert await database.fetch("SELECT 1")


def test_psql_accepts_the_same_urls(tls_postgres: TlsPostgres) -> None:
    """psql accepts and rejects the same URLs."""
    for query, status in ((f"{tls_postgres.verified}&sslmode=verify-full", 0), ("sslmode=verify-full&sslrootcert=/nowhere", 2)):
        url: Any = tls_postgres.url(query, host="127.0.0.1")
        done = subprocess.run([_PROGRAMS / "psql", "--no-psqlrc", "-c", "SELECT 1", url], capture_output=True, check=False)
        assert done.returncode == status, done.stderr
