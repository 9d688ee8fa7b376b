"""Rotation of the password, the certificate and the signing keys without a restart, and a start before the database.

Mitigations:
- Connections are opened when they are needed and replaced after BACKUPS_POOL_MAX_AGE.
- Each connection reads the password from `passfile`, and reads it again if PostgreSQL rejects it.
- Certificates and JWKS are reloaded, each only after it is complete.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from service import pb
from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles, migrate
from service.server import Server
from tests.support.certificates import Authority, Files, certificate_name
from tests.support.eventually import eventually
from tests.support.guarantees import Measure
from tests.support.postgres import temporary_folder
from tests.support.server import start
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

_ROLE = Roles().service


@pytest.fixture(name="guarded_postgres")
def _guarded_postgres() -> Iterator[EmbeddedPostgres]:
    """Yield a stopped PostgreSQL that requires a password of the service's role."""
    with temporary_folder() as folder:
        postgres = EmbeddedPostgres(folder / "postgres", settings={"shared_buffers": "128MB"})
        with postgres.running():
            rules = postgres.data / "pg_hba.conf"
            rules.write_text(f"local all {_ROLE} scram-sha-256\n" + rules.read_text(encoding="utf-8"), encoding="utf-8")
        yield postgres
        postgres.remove()


async def _execute(postgres: EmbeddedPostgres, *statements: str) -> None:
    connection = await asyncpg.connect(postgres.url("postgres"))
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


def _write(passfile: Path, password: str) -> None:
    new = passfile.with_suffix(".new")
    new.write_text(f"*:*:*:{_ROLE}:{password}\n", encoding="utf-8")
    new.chmod(0o600)
    new.replace(passfile)


def _link(folder: Path, version: str) -> None:
    """Replace a symbolic link, as Kubernetes does for the files of a secret."""
    new = folder / "data.new"
    new.symlink_to(version)
    new.replace(folder / "data")


class Caller:
    """Client that makes one call after the other without retries, with a new connection for every twenty calls."""

    def __init__(self, server: Server, authority: Authority) -> None:
        self._server, self._authority = server, authority
        self.token = ""
        self.codes: list[str] = []
        self.failures: list[str] = []

    async def run(self) -> None:
        """Call until cancelled."""
        credentials = grpc.ssl_channel_credentials(self._authority.cert)
        while True:
            options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.secure_channel(f"localhost:{self._server.address.port}", credentials, options=options) as channel:
                for _ in range(20):
                    metadata = [("authorization", f"Bearer {self.token}")]
                    call: Any = pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="f1"), metadata=metadata, timeout=10)
                    self.codes.append((await call.code()).name)
                    if self.codes[-1] != "OK":
                        self.failures.append(f"{self.codes[-1]} {await call.details()}")
                    await asyncio.sleep(0.01)

    async def more(self, count: int = 30) -> None:
        """Wait for `count` further calls."""
        until = len(self.codes) + count
        await eventually(lambda: len(self.codes), lambda done: done >= until, timeout_s=30)


def _settings(postgres: EmbeddedPostgres, folder: Path, authority: Authority) -> dict[str, str]:
    """Write two certificates, and return settings with the first one and the files of the password and the signing keys."""
    for version in ("one", "two"):
        (folder / version).mkdir()
        Files(folder / version).write(authority.pair(version))
    _link(folder, "one")
    tokens = {"jwks": str(folder / "jwks.json"), "jwks_refresh": "0.2", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    database = {"database_url": f"{postgres.url('postgres', user=_ROLE)}&passfile={folder / 'passfile'}", "pool_max_age": "0.1"}
    return {"auth": "jwt", **tokens, **database, **Files(folder / "data").settings}


@contextlib.asynccontextmanager
async def _calling(server: Server, authority: Authority, token: str) -> AsyncIterator[Caller]:
    """Run four clients with one token, which can be replaced."""
    caller = Caller(server, authority)
    caller.token = token
    async with asyncio.TaskGroup() as callers:
        running = [callers.create_task(caller.run()) for _ in range(4)]
        yield caller
        for each in running:
            each.cancel()


@pytest.mark.guarantee(13, "start before the database; password, certificate (by a link, before its key) and JWKS changed under load")
async def test_rotation_under_load(guarded_postgres: EmbeddedPostgres, tmp_path: Path, *, measure: Measure) -> None:
    """The service applies a new password, new certificates and new signing keys without a restart, and no call fails."""
    passfile, jwks = tmp_path / "passfile", tmp_path / "jwks.json"
    authority, issuer = Authority(), Issuer("old", "new")
    _write(passfile, "first")
    jwks.write_bytes(issuer.jwks("old"))
    settings = _settings(guarded_postgres, tmp_path, authority)
    began = time.monotonic()
    server = await start(listen="127.0.0.1:0", drain_delay="0", **settings)
    try:
        assert not server.health.serving
        with guarded_postgres.running():
            await _execute(guarded_postgres, f"CREATE ROLE {_ROLE} LOGIN PASSWORD 'first'")
            await asyncio.to_thread(migrate, guarded_postgres.url("postgres"), roles=Roles())
            await eventually(lambda: server.health.serving, expected=True, timeout_s=20)
            async with _calling(server, authority, issuer.token("old")) as caller:
                await caller.more()
                await _replace_password(guarded_postgres, passfile)
                await caller.more()
                await _replace_keys(caller, server, authority, issuer, jwks)
                shown = await _replace_certificates(caller, server, authority, tmp_path)
            assert shown == ["one", "two", "three"]
            assert caller.failures == []
            measure(f"{len(caller.codes)} calls, all OK, in {time.monotonic() - began:.0f} s")
    finally:
        await server.shutdown()


async def _replace_password(postgres: EmbeddedPostgres, passfile: Path) -> None:
    """Change the password in PostgreSQL and then in the file, and wait until the service has connected with the new one."""
    await _execute(postgres, f"ALTER ROLE {_ROLE} PASSWORD 'second'")
    # The service must have used the old password before the file changes.
    await eventually(postgres.log.read_text, lambda log: "password authentication failed" in log)
    _write(passfile, "second")
    await _until_connections_are_newer(postgres, await _now(postgres))


async def _replace_keys(caller: Caller, server: Server, authority: Authority, issuer: Issuer, jwks: Path) -> None:
    """Add a signing key, use it, and remove the old one."""
    jwks.write_bytes(issuer.jwks("old", "new"))
    await _until_accepted(server, authority, issuer.token("new"))
    caller.token = issuer.token("new")
    await caller.more()
    jwks.write_bytes(issuer.jwks("new"))
    await caller.more()


async def _replace_certificates(caller: Caller, server: Server, authority: Authority, folder: Path) -> list[str]:
    """Replace the certificate by a link, and then its files one after the other; return the names that the server has shown."""
    shown = [await certificate_name("127.0.0.1", server.address.port, authority)]
    _link(folder, "two")
    await caller.more()
    shown.append(await certificate_name("127.0.0.1", server.address.port, authority))
    third = authority.pair("three")
    (folder / "two" / "tls.crt").write_bytes(third.cert)  # incomplete: its key follows
    await caller.more()
    (folder / "two" / "tls.key").write_bytes(third.key)
    await caller.more()
    shown.append(await certificate_name("127.0.0.1", server.address.port, authority))
    return shown


async def _until_accepted(server: Server, authority: Authority, token: str) -> None:
    credentials = grpc.ssl_channel_credentials(authority.cert)
    async with grpc.aio.secure_channel(f"localhost:{server.address.port}", credentials) as channel:
        request, metadata = pb.ListBackupsRequest(folder_id="f1"), [("authorization", f"Bearer {token}")]

        async def code() -> grpc.StatusCode:
            answered: grpc.StatusCode = await pb.BackupServiceStub(channel).List(request, metadata=metadata).code()
            return answered

        await eventually(code, grpc.StatusCode.OK, timeout_s=20)


async def _now(postgres: EmbeddedPostgres) -> Any:
    connection = await asyncpg.connect(postgres.url("postgres"))
    now = await connection.fetchval("SELECT clock_timestamp()")
    await connection.close()
    return now


async def _until_connections_are_newer(postgres: EmbeddedPostgres, moment: Any) -> None:
    connection = await asyncpg.connect(postgres.url("postgres"))
    older = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND backend_start < $2"
    await eventually(lambda: connection.fetchval(older, _ROLE, moment), 0, timeout_s=20)
    await connection.close()
