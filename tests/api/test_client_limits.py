"""Limits of a client: incomplete requests, unread responses, and its share of the admission limit."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from hyperframe.frame import HeadersFrame, RstStreamFrame

from service import pb
from service.api.transport import listener
from service.observability import logs
from service.server import Server
from tests.support.catalog import AddBackups, Sql
from tests.support.eventually import eventually
from tests.support.failures import failure
from tests.support.http2 import Connection, message
from tests.support.server import StartServer, both_ways_to_accept
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

_GET = "/yandex.cloud.mdb.greenplum.v1.BackupService/Get"
_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_WATCH = "/grpc.health.v1.Health/Watch"
_INITIAL_WINDOW_SIZE = 4
_UNREAD = {_INITIAL_WINDOW_SIZE: 0}
_PAGE = message(pb.ListBackupsRequest(folder_id="f1", page_size=1000).SerializeToString())


async def test_connections_are_limited(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection beyond the limit is closed, open connections are served, and a closed one makes room for another."""
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 3)
    async with start_server() as server, AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(Connection.to(server.address)) for _ in range(3)]
        for connection in connections:
            await connection.settled()
        async with Connection.to(server.address) as further:
            assert await further.closed(within=5)
        for connection in connections:
            await connection.frames_of(await connection.call(_GET, message(b"")))
        connections[0].close()

        async def is_closed() -> bool:
            async with Connection.to(server.address) as another:
                return await another.closed(within=0.5)

        await eventually(is_closed, False)


@asynccontextmanager
async def _unread_pages(server: Server, count: int) -> AsyncIterator[tuple[Connection, list[int]]]:
    """Request pages on a connection that lets the server send none of them."""
    async with Connection.to(server.address, _UNREAD) as connection:
        yield connection, [await connection.call(_LIST, _PAGE) for _ in range(count)]


@both_ways_to_accept
async def test_an_unread_response_holds_its_cost(start_server: StartServer, add_backups: AddBackups) -> None:
    """The cost of a response is released when its client has read it, not when it is ready."""
    await add_backups(1000)
    async with start_server(request_timeout="60") as server, _unread_pages(server, 3) as (connection, streams):
        begun: set[int] = set()
        while begun != set(streams):  # gRPC sends the headers of a response when it has the response
            frame = await connection.frame()
            begun |= {frame.stream_id} if isinstance(frame, HeadersFrame) else set()
        assert server.admission.in_flight == 33
        connection.open_windows(1 << 20, *streams)
        await eventually(lambda: server.admission.in_flight, 0)


@both_ways_to_accept
@pytest.mark.parametrize("ends", ["the stream", "the connection"])
async def test_reset_of_an_unread_response(start_server: StartServer, add_backups: AddBackups, ends: str) -> None:
    """A client that resets the stream, or closes the connection, releases the cost of its unread responses."""
    await add_backups(1000)
    async with start_server(request_timeout="60") as server, _unread_pages(server, 2) as (connection, streams):
        await eventually(lambda: server.admission.in_flight, 22)
        if ends == "the stream":
            connection.send(*(RstStreamFrame(stream, error_code=8) for stream in streams))
        else:
            connection.close()
        await eventually(lambda: server.admission.in_flight, 0)


@both_ways_to_accept
async def test_an_unread_response_is_cancelled(
    start_server: StartServer, add_backups: AddBackups, capsys: pytest.CaptureFixture[str]
) -> None:
    """A response that is not read within the request timeout is cancelled: the stream ends with CANCELLED, and the log has a line."""
    await add_backups(1000)
    async with start_server(request_timeout="2") as server, asyncio.timeout(20):
        async with _unread_pages(server, 20) as (connection, streams):
            await eventually(lambda: server.admission.in_flight, 220)
            await eventually(lambda: server.admission.in_flight, 0)
            # The same connection is still served. Until another call arrives, grpc.aio keeps the last one that it has accepted.
            last = await connection.call(_GET, message(b""))
            statuses: dict[int, str] = {}
            while statuses.keys() != {*streams, last}:
                frame = await connection.frame()
                if isinstance(frame, HeadersFrame):
                    statuses[frame.stream_id] = connection.headers(frame).get("grpc-status", "")
                    if "END_STREAM" not in frame.flags:
                        del statuses[frame.stream_id]
            assert statuses == dict.fromkeys(streams, "1") | {last: "3"}
            await eventually(lambda: len(server.listener.interceptor.calls), 0)
    logs.flush()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    calls = {line["request_id"] for line in lines if line["event"] == "call" and line["code"] == "OK"}
    assert {line["request_id"] for line in lines if line["event"] == "response not read"} == calls
    assert len(calls) == 20


async def test_a_response_that_is_read_slowly(start_server: StartServer, add_backups: AddBackups, sql: Sql) -> None:
    """The time for reading a response begins when it is ready: here, after the handler has taken most of the request timeout."""
    await add_backups(1000)
    async with start_server(request_timeout="2") as server, Connection.to(server.address, _UNREAD) as connection:
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            stream = await connection.call(_LIST, _PAGE)
            await asyncio.sleep(1.5)  # a period of the server's clock, not a wait for something
        await asyncio.sleep(1)  # beyond the request timeout of the call as a whole
        connection.open_windows(1 << 20, stream)
        async with asyncio.timeout(5):
            frames = await connection.frames_of(stream)
        assert "END_STREAM" in frames[-1].flags
        [*_, trailers] = [connection.headers(frame) for frame in frames if isinstance(frame, HeadersFrame)]
        assert trailers["grpc-status"] == "0"


@both_ways_to_accept
async def test_shutdown_with_unread_responses(start_server: StartServer, add_backups: AddBackups) -> None:
    """Unread responses do not delay shutdown beyond its grace period."""
    await add_backups(1000)
    async with start_server(request_timeout="60", shutdown_grace="0.3") as server, _unread_pages(server, 5):
        await eventually(lambda: server.admission.in_flight, 55)
        async with asyncio.timeout(10):
            await server.shutdown()
        assert server.admission.in_flight == 0
        assert not server.listener.interceptor.calls


@both_ways_to_accept
@pytest.mark.parametrize("method", [_GET, _LIST, _WATCH, "/grpc.health.v1.Health/Check"])
async def test_incomplete_request(start_server: StartServer, method: str) -> None:
    """A request that does not arrive in full within the request timeout is DEADLINE_EXCEEDED."""
    async with start_server(request_timeout="0.3") as server, Connection.to(server.address) as connection:
        async with asyncio.timeout(10):
            frames = await connection.frames_of(await connection.call(method, message(b"12")[:-1], end=False))
    assert connection.headers(frames[-1] if isinstance(frames[-1], HeadersFrame) else frames[-2])["grpc-status"] == "4"


@both_ways_to_accept
@pytest.mark.parametrize("body", [None, message(b"12")[:-1]])
async def test_a_request_that_ends_early(server: Server, body: bytes | None) -> None:
    """A request that ends before its message is complete is INVALID_ARGUMENT."""
    async with Connection.to(server.address) as connection, asyncio.timeout(10):
        [frame] = await connection.frames_of(await connection.call(_GET, body))
        assert connection.headers(frame)["grpc-status"] == "3"


@both_ways_to_accept
async def test_limit_of_incomplete_requests(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of incomplete requests, the oldest of them is rejected, and no complete one."""
    monkeypatch.setattr("service.composition.MAX_INCOMPLETE_REQUESTS", 50)
    async with start_server(request_timeout="60") as server, Connection.to(server.address) as connection:
        streams = [await connection.call(_GET, b"", end=False) for _ in range(60)]
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            error = await failure(pb.BackupServiceStub(channel).Get(pb.GetBackupRequest(backup_id="none"), timeout=5))
        assert error.code is StatusCode.NOT_FOUND
        assert len(server.listener.interceptor.incomplete) <= 50
        async with asyncio.timeout(10):
            frames = await connection.frames_of(streams[0])
        [headers] = [connection.headers(frame) for frame in frames if isinstance(frame, HeadersFrame)]
        assert headers["grpc-status"] == "8"
        assert "grpc-retry-pushback-ms" in headers


async def test_a_share_for_each_address(start_server: StartServer, sql: Sql) -> None:
    """While another address calls, one address gets half of the limit; alone it gets all of it. The addresses are a trusted proxy's."""
    async with start_server(admission_limit=10, trusted_proxies="127.0.0.1") as server:
        async with (
            grpc.aio.insecure_channel(str(server.address), options=[("grpc.enable_retries", 0)]) as channel,
            AsyncExitStack() as stack,
        ):
            stub: Any = pb.BackupServiceStub(channel)

            def get(address: str) -> Any:
                metadata = [("x-forwarded-for", f"192.0.2.99, {address}")]
                return stub.Get(pb.GetBackupRequest(backup_id="none"), metadata=metadata)

            await stack.enter_async_context(sql.transaction())
            await sql.execute("LOCK TABLE backups")
            alone = [get("192.0.2.1") for _ in range(10)]
            await eventually(lambda: server.admission.in_flight, 10)
            for call in alone[:4]:
                call.cancel()
            await eventually(lambda: server.admission.in_flight, 6)
            other = get("192.0.2.2")
            await eventually(lambda: server.admission.in_flight, 7)
            assert (await failure(get("192.0.2.1"))).code is StatusCode.RESOURCE_EXHAUSTED
            others = [other, *(get("192.0.2.2") for _ in range(3))]
            await eventually(lambda: server.admission.in_flight, 10)
            assert (await failure(get("192.0.2.2"))).code is StatusCode.RESOURCE_EXHAUSTED
            for call in (*alone, *others):
                call.cancel()
            await eventually(lambda: server.admission.in_flight, 0)


async def test_a_forged_address(start_server: StartServer, sql: Sql) -> None:
    """A peer that is not a trusted proxy is limited by its own address, for any `x-forwarded-for`."""
    async with start_server(admission_limit=10) as server, AsyncExitStack() as stack:
        options = [("grpc.enable_retries", 0)]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(str(server.address), options=options))
        stub: Any = pb.BackupServiceStub(channel)
        server.admission.admit("another", 1)
        await stack.enter_async_context(sql.transaction())
        await sql.execute("LOCK TABLE backups")
        request = pb.GetBackupRequest(backup_id="none")
        calls = [stub.Get(request, metadata=[("x-forwarded-for", f"192.0.2.{number}")]) for number in range(5)]
        await eventually(lambda: server.admission.in_flight, 6)
        error = await failure(stub.Get(request, metadata=[("x-forwarded-for", "192.0.2.77")]))
        assert error.code is StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()
        await eventually(lambda: server.admission.in_flight, 1)


async def test_a_share_for_each_subject(start_server: StartServer, sql: Sql, tmp_path: Path) -> None:
    """With tokens, the limit of a client applies to each subject, and calls with a bad token do not use it up."""
    issuer, jwks = Issuer("one"), tmp_path / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    jwt = {"auth": "jwt", "jwks": str(jwks), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    async with start_server(admission_limit=10, **jwt) as server, AsyncExitStack() as stack:
        options = [("grpc.enable_retries", 0)]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(str(server.address), options=options))
        stub: Any = pb.BackupServiceStub(channel)

        def get(token: str) -> Any:
            return stub.Get(pb.GetBackupRequest(backup_id="none"), metadata=[("authorization", f"Bearer {token}")])

        one, two = (issuer.token("one", sub=subject) for subject in ("one", "two"))
        await eventually(lambda: server.health.serving, True)
        await stack.enter_async_context(sql.transaction())
        await sql.execute("LOCK TABLE backups")
        first = get(two)
        await eventually(lambda: server.admission.in_flight, 1)
        calls = [first, *(get(one) for _ in range(5))]
        await eventually(lambda: server.admission.in_flight, 6)
        assert (await failure(get(one))).code is StatusCode.RESOURCE_EXHAUSTED
        assert {(await failure(get("junk"))).code for _ in range(20)} == {StatusCode.UNAUTHENTICATED}
        calls += [get(two) for _ in range(4)]
        await eventually(lambda: server.admission.in_flight, 10)
        for call in calls:
            call.cancel()
        await eventually(lambda: server.admission.in_flight, 0)
