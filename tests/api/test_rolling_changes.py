"""The steps of docs/deploying.md, each with a replica before the step and one after it, at the same time.

Calls go to both in turn, as from a load balancer.
"""

import base64
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from service import pb
from service.dev.embedded_postgres import EmbeddedPostgres
from service.page_token import DEFAULT_KEY
from service.postgres.migration import Roles
from service.postgres.schema import REQUIRED_REVISION
from service.server import Server
from tests.support.catalog import AddBackups, Sql
from tests.support.certificates import Authority, Files
from tests.support.eventually import eventually
from tests.support.failures import failure
from tests.support.server import StartServer
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

_KEY = base64.b64encode(bytes(range(32))).decode()
_JWT = {"auth": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwks_refresh": "0.05"}

Settings = dict[str, Any]


async def _serving(server: Server, *, serving: bool = True) -> None:
    await eventually(lambda: server.health.serving, serving)


@contextlib.asynccontextmanager
async def _side_by_side(start_server: StartServer, before: Settings, after: Settings) -> AsyncIterator[list[Server]]:
    async with start_server(**before) as old, start_server(**after) as new:
        for server in (old, new):
            await _serving(server)
        yield [old, new]


async def _walk(servers: list[Server], token: str = "", credentials: bytes | None = None) -> list[str]:
    """Return the ids of folder f1, in pages of two, each from the next server in turn."""
    async with contextlib.AsyncExitStack() as stack:
        stubs = []
        for server in servers:
            port = server.address.port
            channel = (
                grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(credentials))
                if credentials
                else grpc.aio.insecure_channel(str(server.address))
            )
            stubs.append(pb.BackupServiceStub(await stack.enter_async_context(channel)))
        found: list[str] = []
        page_token = ""
        metadata = [("authorization", f"Bearer {token}")] if token else []
        for stub in itertools.cycle(stubs):
            request = pb.ListBackupsRequest(folder_id="f1", page_size=2, page_token=page_token)
            page = await stub.List(request, metadata=metadata, timeout=10)
            found += [backup.id for backup in page.backups]
            page_token = page.next_page_token
            if not page_token:
                return found
    raise AssertionError


_PAGE_TOKEN_KEY: list[Settings] = [
    {},
    {"page_token_keys_accepted": [DEFAULT_KEY, bytes(range(32))]},  # 1. accept the new one
    {"page_token_key": _KEY, "page_token_keys_accepted": [DEFAULT_KEY]},  # 2. seal with it
    {"page_token_key": _KEY},  # 3. drop the old one
]


@pytest.mark.parametrize("step", [1, 2, 3])
async def test_page_token_key(start_server: StartServer, add_backups: AddBackups, step: int) -> None:
    """At each step of a key rotation, clients can page across the replicas before and after the step."""
    backups = await add_backups(9)
    async with _side_by_side(start_server, _PAGE_TOKEN_KEY[step - 1], _PAGE_TOKEN_KEY[step]) as servers:
        for order in (servers, servers[::-1]):
            assert await _walk(order) == [backup.id for backup in backups]


async def test_page_token_key_in_one_step(start_server: StartServer, add_backups: AddBackups) -> None:
    """Changing the key in one step breaks paging. Therefore there are three steps."""
    await add_backups(9)
    async with _side_by_side(start_server, _PAGE_TOKEN_KEY[0], _PAGE_TOKEN_KEY[3]) as servers:
        error = await failure(_walk(servers))
    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


@pytest.mark.parametrize(
    ("before", "signs", "after"),
    [
        (["old"], "old", ["old", "new"]),  # 1. publish the new key next to the old one
        (["old", "new"], "new", ["old", "new"]),  # 2. sign with it, once jwks_refresh has passed
        (["old", "new"], "new", ["new"]),  # 3. withdraw the old one, once its last token has expired
    ],
)
async def test_signing_key(
    start_server: StartServer, add_backups: AddBackups, tmp_path: Path, before: list[str], signs: str, after: list[str]
) -> None:
    """At each step, tokens are accepted by a replica that has read the new keys and by one that has not."""
    backups = await add_backups(5)
    issuer = Issuer("old", "new")
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, kids in zip(files, (before, after), strict=True):
        file.write_bytes(issuer.jwks(*kids))
    async with _side_by_side(start_server, _JWT | {"jwks": str(files[0])}, _JWT | {"jwks": str(files[1])}) as servers:
        assert await _walk(servers, token=issuer.token(signs)) == [backup.id for backup in backups]


@pytest.mark.parametrize("step", [1, 2])
async def test_certificate_authority(start_server: StartServer, add_backups: AddBackups, tmp_path: Path, step: int) -> None:
    """At each step, clients reach both replicas, because they trust both authorities before the certificates change."""
    backups = await add_backups(5)
    authorities = [Authority("old authority"), Authority("new authority")]
    files = []
    for name, authority in zip(("before", "after"), authorities if step == 2 else [authorities[0]] * 2, strict=True):
        folder = tmp_path / name
        folder.mkdir()
        files.append(Files(folder))
        files[-1].write(authority.pair(name))
    trusted = b"".join(authority.cert for authority in authorities)
    async with _side_by_side(start_server, files[0].settings, files[1].settings) as servers:
        assert await _walk(servers, credentials=trusted) == [backup.id for backup in backups]


async def test_schema(start_server: StartServer, add_backups: AddBackups, sql: Sql) -> None:
    """The previous release serves on the old and on the new schema, and the new release only on the new one."""
    backups = await add_backups(5)
    async with _side_by_side(start_server, {}, {}) as [old, new]:
        new.readiness.required_revision = REQUIRED_REVISION + 1
        await _serving(new, serving=False)
        assert old.health.serving
        await sql.execute("ALTER TABLE backups ADD COLUMN added bigint")
        await sql.execute(f"UPDATE alembic_version SET version_num = '{REQUIRED_REVISION + 1:04}'")
        await _serving(new)
        assert await _walk([old, new]) == [backup.id for backup in backups]
        assert old.health.serving


async def test_turning_on_authentication(start_server: StartServer, add_backups: AddBackups, tmp_path: Path) -> None:
    """Clients send tokens first (1), then replicas require them (2); replicas of both configurations serve such clients."""
    backups = await add_backups(5)
    issuer = Issuer("k")
    jwks = tmp_path / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    async with _side_by_side(start_server, {"auth": "none"}, _JWT | {"jwks": str(jwks)}) as servers:
        assert await _walk(servers, token=issuer.token("k")) == [backup.id for backup in backups]


async def test_other_settings(start_server: StartServer, add_backups: AddBackups) -> None:
    """Replicas may differ in pool sizes, timeouts, admission limits and connection ages."""
    backups = await add_backups(5)
    other = {"pool_size": 1, "request_timeout": "3", "admission_limit": 20, "connection_max_age": "1", "shutdown_grace": "1"}
    async with _side_by_side(start_server, {}, other) as servers:
        assert await _walk(servers) == [backup.id for backup in backups]


async def test_database_password(
    start_server: StartServer, add_backups: AddBackups, sql: Sql, postgres: EmbeddedPostgres, database_name: str
) -> None:
    """Replicas can use two roles with the same privileges at the same time, so that a role is replaced one replica at a time."""
    backups = await add_backups(5)
    role = f"service_2_{database_name}"
    await sql.execute(f"CREATE ROLE {role} LOGIN IN ROLE {Roles().service}")
    try:
        async with _side_by_side(start_server, {}, {"database_url": postgres.url(database_name, user=role)}) as servers:
            assert await _walk(servers) == [backup.id for backup in backups]
    finally:
        await sql.execute(f"DROP ROLE {role}")
