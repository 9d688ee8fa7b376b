"""Error statuses over a socket: invalid requests, an unavailable database, deadlines and unexpected errors."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2

from service import pb
from service.api.interceptor import Interceptor
from service.errors import BackupNotFound, CatalogUnavailable
from service.observability import logs
from service.page_token import DEFAULT_KEY, PageTokens
from service.server import Server
from tests.support.catalog import AddBackups, Sql
from tests.support.eventually import eventually
from tests.support.failures import failure
from tests.support.http2 import Connection, message
from tests.support.page_tokens import folder_scope
from tests.support.server import StartServer, both_ways_to_accept

_GET = "/yandex.cloud.mdb.greenplum.v1.BackupService/Get"
_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_CHECK = "/grpc.health.v1.Health/Check"
_WATCH = "/grpc.health.v1.Health/Watch"
_REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def test_fields_beyond_limits(stub: pb.BackupServiceStub) -> None:
    """INVALID_ARGUMENT names every field that is beyond a limit of the contract."""
    error = await failure(stub.List(pb.ListBackupsRequest(folder_id="f" * 51, page_size=1001, page_token="t" * 101)))
    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert [field for field, _ in error.violations] == ["folder_id", "page_size", "page_token"]

    error = await failure(stub.Get(pb.GetBackupRequest()))
    assert (error.code, error.violations) == (StatusCode.INVALID_ARGUMENT, [("backup_id", "Is required.")])


@pytest.mark.parametrize("method", [_GET, _LIST, _CHECK])
@pytest.mark.parametrize("data", [b"\x0a\x02\xff\xfe", b"\x0a\xff", b"\xff" * 100, b"\x08"])
async def test_undecodable_request(channel: Any, method: str, data: bytes) -> None:
    """Bytes that are not a message of the method are INVALID_ARGUMENT with a fixed text, for health checks too."""
    error = await failure(channel.unary_unary(method)(data))
    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "UNDECODABLE_REQUEST")
    assert error.message == "The request's bytes are not a message of this method."


@pytest.mark.parametrize("method", [_WATCH, _REFLECT])
async def test_undecodable_stream(channel: Any, method: str) -> None:
    """Methods with streams return the same status."""

    async def requests() -> AsyncIterator[bytes]:
        yield b"\x0a\x02\xff\xfe"

    async def first() -> Any:
        call: Any = channel.unary_stream(method)(b"\x0a\x02\xff\xfe") if method == _WATCH else channel.stream_stream(method)(requests())
        return [response async for response in call]

    assert (await failure(first())).reason == "UNDECODABLE_REQUEST"


async def test_unknown_fields_and_empty_messages(channel: Any) -> None:
    """Unknown fields are ignored, and an empty request is a message without fields."""
    known = pb.ListBackupsRequest(folder_id="f").SerializeToString()
    assert await channel.unary_unary(_LIST)(known + b"\xa2\x06\x01x") == b""
    assert (await failure(channel.unary_unary(_LIST)(b""))).violations == [("folder_id", "Is required.")]


async def test_invalid_page_tokens(start_server: StartServer, add_backups: AddBackups, owner_url: str) -> None:
    """A token that is malformed, modified, of another folder or of another key is INVALID_ARGUMENT before any query."""
    await add_backups(3)
    other_key = PageTokens(bytes(32))
    async with start_server() as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        stub = pb.BackupServiceStub(channel)
        token = (await stub.List(pb.ListBackupsRequest(folder_id="f1", page_size=1))).next_page_token
        position = PageTokens(DEFAULT_KEY).open(token, folder_scope("f1"))
        assert position
        bad = ["x", "\0", "🐘", token[:-1], token + "A", token + "=", token.lower(), other_key.seal(position, folder_scope("f1")),
               PageTokens().seal(position, folder_scope("f2")), base64.b64encode(b"1").decode()]  # fmt: skip
        async with _no_sql(owner_url):
            for page_token in bad:
                error = await failure(stub.List(pb.ListBackupsRequest(folder_id="f1", page_size=1, page_token=page_token)))
                assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")
                assert [field for field, _ in error.violations] == ["page_token"]


@contextlib.asynccontextmanager
async def _no_sql(owner_url: str) -> AsyncIterator[None]:
    """Lock the table, so that a call that queries it would time out."""
    connection = await asyncpg.connect(owner_url)
    async with connection.transaction():
        await connection.execute("LOCK TABLE backups IN ACCESS EXCLUSIVE MODE")
        yield
    await connection.close()


@pytest.mark.parametrize(
    "backup_id", ["none", "x" * 50, "x" * 51, "a\0b", "\0", " ", "\n", "ж", "🐘" * 10, "'; DROP TABLE backups; --", "%s"]
)
async def test_unknown_id(stub: pb.BackupServiceStub, add_backups: AddBackups, backup_id: str) -> None:
    """An unknown id of any characters is NOT_FOUND with the type and name of the resource."""
    await add_backups(1)
    error = await failure(stub.Get(pb.GetBackupRequest(backup_id=backup_id)))
    assert (error.code, error.reason) == (StatusCode.NOT_FOUND, "BACKUP_NOT_FOUND")
    assert error.resource == ("yandex.cloud.mdb.greenplum.v1.Backup", backup_id)


@pytest.mark.parametrize("size", [1_000, 3_000, 7_000, 8_000])
@pytest.mark.parametrize("character", ["x", "\x01", "Ж"])
async def test_long_id(stub: pb.BackupServiceStub, size: int, character: str) -> None:
    """An id that is too long for the trailers is NOT_FOUND as well, with a truncated name."""
    for _ in range(5):  # a client rejects responses that are too large only sometimes
        error = await failure(stub.Get(pb.GetBackupRequest(backup_id=character * size)))
        assert error.code is StatusCode.NOT_FOUND
        assert error.resource == ("yandex.cloud.mdb.greenplum.v1.Backup", character * 128)


async def test_no_database(start_server: StartServer) -> None:
    """Without PostgreSQL, the server starts, is NOT_SERVING, and returns UNAVAILABLE."""
    async with (
        start_server(database_url="postgresql://127.0.0.1:1/none") as server,
        grpc.aio.insecure_channel(str(server.address)) as channel,
    ):
        stub = pb.BackupServiceStub(channel)
        for call in (stub.Get(pb.GetBackupRequest(backup_id="a")), stub.List(pb.ListBackupsRequest(folder_id="f"))):
            error = await failure(call)
            assert (error.code, error.reason) == (StatusCode.UNAVAILABLE, "CATALOG_UNAVAILABLE")


async def test_no_schema(start_server: StartServer, empty_database_url: str) -> None:
    """Calls are UNAVAILABLE while the database is not migrated."""
    async with start_server(database_url=empty_database_url) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        assert (await failure(pb.BackupServiceStub(channel).Get(pb.GetBackupRequest(backup_id="a")))).code is StatusCode.UNAVAILABLE


async def test_no_free_connection(start_server: StartServer, sql: Sql, add_backups: AddBackups) -> None:
    """A call is UNAVAILABLE if no connection becomes free within BACKUPS_ACQUIRE_TIMEOUT."""
    [backup] = await add_backups(1)
    async with start_server(pool_size=1, acquire_timeout="1") as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        stub = pb.BackupServiceStub(channel)
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            waiting = asyncio.ensure_future(_of(stub.List(pb.ListBackupsRequest(folder_id="f1"))))
            await _until_a_query_waits(sql)
            error = await failure(stub.Get(pb.GetBackupRequest(backup_id=backup.id)))
        assert error.code is StatusCode.UNAVAILABLE
        assert len((await waiting).backups) == 1


@both_ways_to_accept
async def test_deadline_of_the_client(server: Server, stub: pb.BackupServiceStub, sql: Sql) -> None:
    """A call is DEADLINE_EXCEEDED after the deadline of its client, and the next call on the connection succeeds."""
    async with sql.transaction():
        await sql.execute("LOCK TABLE backups")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Get(pb.GetBackupRequest(backup_id="a"), timeout=0.3)
        assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Get(pb.GetBackupRequest(backup_id="a"))
    assert caught.value.code() is StatusCode.NOT_FOUND


@both_ways_to_accept
async def test_request_timeout(start_server: StartServer, sql: Sql) -> None:
    """A call that takes longer than BACKUPS_REQUEST_TIMEOUT is DEADLINE_EXCEEDED, even if its client set a later deadline."""
    async with start_server(request_timeout="0.3") as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        stub = pb.BackupServiceStub(channel)
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            for timeout in (None, 60):
                error = await failure(stub.Get(pb.GetBackupRequest(backup_id="a"), timeout=timeout))
                assert error.code is StatusCode.DEADLINE_EXCEEDED


@both_ways_to_accept
async def test_unexpected_error(
    server: Server, stub: pb.BackupServiceStub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unexpected error is INTERNAL with a fixed text and a request id; the log has its type with that id, and no part of its text."""

    async def broken(self: object, backup_id: str, **_: object) -> bytes:
        raise RuntimeError("hunter2")

    monkeypatch.setattr("service.postgres.catalog.Catalog.get", broken)
    error = await failure(stub.Get(pb.GetBackupRequest(backup_id="a")))

    assert (error.code, error.reason) == (StatusCode.INTERNAL, "INTERNAL")
    assert error.message == "Internal error. Quote the request id when you report it."
    logs.flush()
    captured = capsys.readouterr()
    logged = captured.out + captured.err
    assert error.request_id in logged
    assert "builtins.RuntimeError" in logged
    assert "hunter2" not in logged + str(error.trailers)


@pytest.mark.parametrize("broken", ["_wrap_handler", "_begin"])
async def test_error_of_the_interceptor(
    server: Server, stub: pb.BackupServiceStub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    """An error in the interceptor itself is INTERNAL with a fixed text and a request id; its text is neither returned nor logged."""

    def fail(*_: object) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(Interceptor, broken, fail)
    error = await failure(stub.Get(pb.GetBackupRequest(backup_id="a")))

    assert (error.code, error.reason) == (StatusCode.INTERNAL, "INTERNAL")
    assert error.message == "Internal error. Quote the request id when you report it."
    logs.flush()
    [line] = _calls(capsys)
    assert (line["code"], line["request_id"], line["error"][0]["type"]) == ("INTERNAL", error.request_id, "builtins.RuntimeError")
    assert "hunter2" not in str(line) + str(error.trailers)


async def test_health_checks_are_not_logged(
    server: Server, channel: Any, stub: pb.BackupServiceStub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Health checks, even of an unknown service, are in the metrics and not in the log, unless one fails unexpectedly."""
    check = channel.unary_unary(_CHECK)
    await check(b"")
    assert (await failure(check(health_pb2.HealthCheckRequest(service="none").SerializeToString()))).code is StatusCode.NOT_FOUND
    await stub.List(pb.ListBackupsRequest(folder_id="f1"))
    logs.flush()
    assert [line["method"] for line in _calls(capsys)] == [_LIST]

    def broken(self: object, service: str) -> None:
        raise RuntimeError

    monkeypatch.setattr("service.api.health.Health._status", broken)
    assert (await failure(check(b""))).code is StatusCode.INTERNAL
    logs.flush()
    assert [(line["method"], line["level"]) for line in _calls(capsys)] == [(_CHECK, "error")]


def _calls(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [line for line in lines if line["event"] == "call"]


@both_ways_to_accept
async def test_error_after_the_deadline(
    stub: pb.BackupServiceStub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a call has already ended when its handler fails, its own code is logged, and not the failure to send the response."""

    async def late(self: object, backup_id: str, **_: object) -> bytes:
        time.sleep(0.6)  # noqa: ASYNC251  # blocks the event loop, so that only gRPC's core sees the deadline pass
        raise CatalogUnavailable

    monkeypatch.setattr("service.postgres.catalog.Catalog.get", late)
    await stub.List(pb.ListBackupsRequest(folder_id="f1"))  # connects
    logs.flush()
    capsys.readouterr()
    assert await stub.Get(pb.GetBackupRequest(backup_id="a"), timeout=0.3).code() is StatusCode.DEADLINE_EXCEEDED
    await stub.List(pb.ListBackupsRequest(folder_id="f1"))  # by now, the other has ended
    logs.flush()
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["code"] for line in logged if line["event"] == "call"] == ["UNAVAILABLE", "OK"]


@both_ways_to_accept
async def test_calls_without_time_left(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls whose deadline has passed send no query to PostgreSQL: otherwise an overloaded server would answer no call in time."""
    queried = []

    async def get(self: object, backup_id: str, **_: object) -> bytes:
        queried.append(backup_id)
        raise BackupNotFound(backup_id)

    monkeypatch.setattr("service.postgres.catalog.Catalog.get", get)
    body = message(pb.GetBackupRequest(backup_id="a").SerializeToString())

    async def call(timeout: str) -> None:
        async with Connection.to(server.address) as connection:
            await connection.frames_of(await connection.call(_GET, body, timeout=timeout))

    for _ in range(30):
        await call("1n")
    assert not queried
    logs.flush()
    assert "DEADLINE_EXCEEDED" in capsys.readouterr().err  # of the calls that reached the interceptor; gRPC itself ended the others
    await call("20S")
    assert queried == ["a"]


@both_ways_to_accept
async def test_cancelled_by_the_server(stub: pb.BackupServiceStub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that the server itself cancels is UNAVAILABLE; without a response its client would wait forever."""

    async def cancelled(self: object, backup_id: str, **_: object) -> bytes:
        raise asyncio.CancelledError

    monkeypatch.setattr("service.postgres.catalog.Catalog.get", cancelled)
    error = await failure(stub.Get(pb.GetBackupRequest(backup_id="a"), timeout=20))
    assert (error.code, error.reason) == (StatusCode.UNAVAILABLE, "CALL_INTERRUPTED")


@both_ways_to_accept
async def test_unknown_methods(channel: Any) -> None:
    """Unknown methods and services are UNIMPLEMENTED."""
    for method in ("/yandex.cloud.mdb.greenplum.v1.BackupService/Delete", "/a.B/C", "/"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(method)(b"")
        assert caught.value.code() is StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("metadata", "request_id"),
    [
        ([("x-client-request-id", "mine-1")], "mine-1"),
        ([("x-request-id", "mine-2")], "mine-2"),
        ([("x-request-id", "second"), ("x-client-request-id", "first")], "first"),
        ([("x-request-id", "second"), ("x-client-request-id", "not sane")], "second"),
        ([("x-request-id", "x" * 101)], None),
        ([("x-request-id", "a b")], None),
        ([("x-request-id", "")], None),
        ([], None),
    ],
)
async def test_request_ids(stub: pb.BackupServiceStub, metadata: list[tuple[str, str]], request_id: str | None) -> None:
    """The trailers of every response have the client's request id if it is well-formed, otherwise a new one."""
    error = await failure(stub.Get(pb.GetBackupRequest(backup_id="a"), metadata=metadata))
    if request_id:
        assert error.request_id == request_id
    else:
        assert len(error.request_id) == 36

    call: Any = stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=metadata)
    await call
    given = dict(await call.trailing_metadata())["x-request-id"]
    assert given == request_id if request_id else len(given) == 36


@both_ways_to_accept
async def test_errors_are_trailers_only(start_server: StartServer) -> None:
    """An error is one frame of headers that ends the stream: a client that has seen initial metadata does not retry."""
    async with start_server(database_url="postgresql://127.0.0.1:1/none") as server:
        async with Connection.to(server.address) as connection:
            stream = await connection.call(_GET, message(pb.GetBackupRequest(backup_id="a").SerializeToString()))
            frames = await connection.frames_of(stream)
    assert [(type(frame).__name__, "END_STREAM" in frame.flags) for frame in frames] == [("HeadersFrame", True)]
    assert connection.headers(frames[0])["grpc-status"] == "14"


async def _of(call: Any) -> Any:
    return await call


async def _until_a_query_waits(sql: Sql) -> None:
    # Not pg_stat_activity, which does not change within a transaction.
    await eventually(lambda: sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"), bool)
