"""The unmodified official clients, over TLS and with tokens, connected to the service directly and through Envoy."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from grpc import StatusCode

from tests.clients.programs import NAMES, ClientError, Program, Row, command
from tests.support.catalog import AddBackups, Backup, Sql
from tests.support.certificates import Authority, Files
from tests.support.deployment import deployed
from tests.support.eventually import eventually
from tests.support.ports import free_ports
from tests.support.server import StartServer
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Service(NamedTuple):
    """A running service."""

    address: str
    authority: Authority
    issuer: Issuer

    def token(self, *folders: str) -> str:
        return self.issuer.token("main", folders=list(folders))


StartService = Callable[[], AbstractAsyncContextManager[Service]]


@pytest.fixture(name="service", params=["direct", "envoy"])
def _service(request: pytest.FixtureRequest, database_url: str, start_server: StartServer, tmp_path: Path) -> StartService:
    """Start the service with its own certificate, or behind Envoy."""

    @asynccontextmanager
    async def direct() -> AsyncIterator[Service]:
        [port] = free_ports(1)
        authority, issuer, files = Authority(), Issuer("main"), Files(tmp_path)
        files.write(authority.pair("service"))
        jwks = tmp_path / "jwks.json"
        jwks.write_bytes(issuer.jwks())
        settings = {"auth": "jwt", "jwks": str(jwks), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, **files.settings}
        address = f"localhost:{port}"
        async with start_server(**settings, listen=f"127.0.0.1:{port}", public_address=address) as server:
            await eventually(lambda: server.health.serving, True)  # the expected value
            yield Service(address, authority, issuer)

    @asynccontextmanager
    async def behind_envoy() -> AsyncIterator[Service]:
        async with deployed(database_url) as deployment:
            yield Service(f"localhost:{deployment.tls_port}", deployment.authority, deployment.issuer)

    return {"direct": direct, "envoy": behind_envoy}[request.param]


@asynccontextmanager
async def _running(name: str, service: Service, folder: Path) -> AsyncIterator[Program]:
    ca_file = folder / "ca.crt"
    ca_file.write_bytes(service.authority.cert)
    with contextlib.closing(Program(command(name), service.address, ca_file, folder / "client.log")) as program:
        yield program


def _precision(name: str) -> timedelta:
    """Return the precision of a client's times; that of JavaScript's Date is a millisecond."""
    return timedelta(milliseconds=1) if name == "node" else timedelta(microseconds=1)


def _row(backup: Backup, *, precision: timedelta) -> Row:
    """Return a backup as a client returns it, with the precision of the client's times."""
    created_at, started_at = (
        (time - _EPOCH) // precision * (precision // timedelta(microseconds=1)) for time in (backup.created_at, backup.started_at)
    )
    return Row(backup.id, backup.folder_id, created_at, backup.source_cluster_id, started_at, backup.size, type=0, method=0, journal_size=0)


@pytest.mark.parametrize("name", NAMES)
async def test_client(name: str, service: StartService, add_backups: AddBackups, tmp_path: Path) -> None:
    """A client gets a backup, lists folders and clusters over all pages, and reports errors with their request ids."""
    command(name)  # skips the test if the client is not installed, before anything is started
    precision = _precision(name)
    many = await add_backups(2300)
    alike = await add_backups(50, folder_id="f2", source_cluster_id="c2", step=timedelta(0), size=2**53 - 1)
    async with service() as started, _running(name, started, tmp_path) as client:
        token = started.token("f1", "f2")

        assert await client.call("get", token=token, backup_id=many[7].id) == [_row(many[7], precision=precision)]
        for page_size in (0, 1000):
            listed = await client.call("list", token=token, folder_id="f1", page_size=page_size)
            assert listed == [_row(backup, precision=precision) for backup in many]
        expected = sorted(alike, key=lambda backup: backup.id, reverse=True)
        assert await client.call("list", token=token, folder_id="f2", page_size=7) == [_row(each, precision=precision) for each in expected]
        assert await client.call("list", token=started.token("f3"), folder_id="f3", page_size=0) == []

        for page_size in (0, 1000):
            listed = await client.call("list_cluster", token=token, cluster_id="c1", page_size=page_size)
            assert listed == [_row(backup, precision=precision) for backup in many]
        for cluster_id in ("c1", "none"):
            assert await client.call("list_cluster", token=started.token("f3"), cluster_id=cluster_id, page_size=0) == []

        await _check_errors(client, started, many[7].id)


async def _check_errors(client: Program, started: Service, backup_id: str) -> None:
    """Check the errors that a client reports."""
    token = started.token("f1", "f2")
    errors = {
        ("get", "none", token): (StatusCode.NOT_FOUND, "There is no such backup."),
        ("get", backup_id, started.token("f3")): (StatusCode.NOT_FOUND, "There is no such backup."),
        ("list", "f1", started.token("f3")): (StatusCode.PERMISSION_DENIED, "The caller may not read this folder."),
        ("list", "f1", "t1.opaque"): (StatusCode.UNAUTHENTICATED, "A valid bearer token is required."),
        ("list", "f" * 51, started.token("*")): (StatusCode.INVALID_ARGUMENT, "The request violates limits of the API."),
    }
    for (name, value, given), (code, message) in errors.items():
        response = await client.call(name, token=given, page_size=0, **{"backup_id" if name == "get" else "folder_id": value})
        assert isinstance(response, ClientError)
        assert (response.code, response.message) == (code.value[0], message)
        assert len(response.request_id) == 36  # a UUID, of the service or of Envoy

    for name in ("delete", "create token"):
        response = await client.call(name, token=token, backup_id=backup_id)
        assert isinstance(response, ClientError)
        assert response.code == StatusCode.UNIMPLEMENTED.value[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("service", ["direct"], indirect=True)
async def test_largest_size(name: str, service: StartService, add_backups: AddBackups, tmp_path: Path) -> None:
    """Every client decodes the largest size that the catalog can hold."""
    command(name)
    [backup] = await add_backups(1, size=2**53 - 1)
    async with service() as started, _running(name, started, tmp_path) as client:
        response = await client.call("get", token=started.token("f1"), backup_id=backup.id)
        assert response == [_row(backup, precision=_precision(name))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("service", ["direct"], indirect=True)
async def test_methods(name: str, service: StartService, add_backups: AddBackups, sql: Sql, tmp_path: Path) -> None:
    """Every client decodes the method of a backup; one of a partial backup is unspecified."""
    command(name)
    backups = await add_backups(3)
    facts = [("base", "everything"), ("incremental", "everything"), ("base", "metadata only")]
    for backup, (method, contents) in zip(backups, facts, strict=True):
        await sql.execute("UPDATE backups SET method = $2, contents = $3 WHERE id = $1", backup.id, method, contents)
    async with service() as started, _running(name, started, tmp_path) as client:
        found = await client.call("list", token=started.token("f1"), folder_id="f1", page_size=0)
    assert isinstance(found, list)
    assert [row.method for row in found] == [1, 2, 0]
