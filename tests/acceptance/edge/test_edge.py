"""The edge as docs/deploying.md describes it: limits per client address, load balancers in front, and memory."""

import asyncio
import contextlib
import http.client
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from hpack import Encoder, NeverIndexedHeaderTuple
from hyperframe.frame import DataFrame, HeadersFrame

from service import pb
from service.address import Address
from tests.support.catalog import AddBackups, Backup, Sql, insert
from tests.support.deployment import Deployment, fetch
from tests.support.edge import Edge, edge, replaced
from tests.support.eventually import eventually
from tests.support.http2 import Connection, message

_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_BACKUPS = "/managed-greenplum/v1/backups?folderId=f1"
_BURST = 5
_INITIAL_WINDOW_SIZE = 4
_EJECTIONS = "cluster.service.outlier_detection"
_LOW_RATE = replaced("max_tokens: 250, tokens_per_fill: 250, fill_interval: 0.25s", f"max_tokens: {_BURST}, fill_interval: 3600s")
_NO_RATE_LIMIT = replaced("filter_enabled: {default_value: {numerator: 100}}", "filter_enabled: {default_value: {numerator: 0}}")
_TRUSTED_HOP = replaced("xff_num_trusted_hops: 0", "xff_num_trusted_hops: 1")
_PROXY_PROTOCOL = replaced("# listener_filters:", "listener_filters:")


async def _statuses(deployment: Deployment, envoy: Edge, count: int, **headers: str) -> list[int]:
    """Make `count` requests, one after the other, and return their HTTP statuses."""
    headers = {"authorization": f"Bearer {deployment.token()}"} | headers
    url = f"http://127.0.0.1:{envoy.port}{_BACKUPS}"
    return [(await asyncio.to_thread(fetch, url, "GET", headers)).status for _ in range(count)]


async def test_rate_limit_is_per_address(deployment: Deployment) -> None:
    """A client that has used up its rate is rejected, and a client with another address is served."""
    async with edge(deployment, _LOW_RATE) as envoy:
        assert await _statuses(deployment, envoy, _BURST + 2) == [200] * _BURST + [429] * 2
        async with _channel(envoy, "127.0.0.3") as channel:
            assert await _list(channel, deployment) is StatusCode.OK


async def test_rate_limit_is_disabled_by_one_line(deployment: Deployment) -> None:
    """With `numerator: 0` no call is rejected for its rate."""
    async with edge(deployment, _LOW_RATE, _NO_RATE_LIMIT) as envoy:
        assert await _statuses(deployment, envoy, 4 * _BURST) == [200] * 4 * _BURST


async def test_all_clients_behind_one_address(deployment: Deployment) -> None:
    """The shipped configuration serves all clients behind one address, at many times the rate that they need."""
    clients, calls = 50, 20
    async with edge(deployment) as envoy, contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(_channel(envoy, "127.0.0.2")) for _ in range(clients)]

        async def client(channel: grpc.aio.Channel) -> list[StatusCode]:
            return [await _list(channel, deployment) for _ in range(calls)]

        codes = Counter(code for each in await asyncio.gather(*map(client, channels)) for code in each)
    assert codes == {StatusCode.OK: clients * calls}


async def test_forwarded_address_is_not_trusted(deployment: Deployment) -> None:
    """Without `xff_num_trusted_hops` a client cannot choose the address that it is limited by."""
    async with edge(deployment, _LOW_RATE) as envoy:
        statuses = [*await _statuses(deployment, envoy, _BURST), *await _statuses(deployment, envoy, 1, **{"x-forwarded-for": "192.0.2.1"})]
        assert statuses == [200] * _BURST + [429]
        peers = await eventually(envoy.peers, lambda peers: len(peers) == len(statuses))
        assert set(peers) == {"127.0.0.1"}


async def test_behind_http_load_balancer(deployment: Deployment) -> None:
    """With `xff_num_trusted_hops: 1` the rate limit and the log use the address that the load balancer has appended."""
    async with edge(deployment, _LOW_RATE, _TRUSTED_HOP) as envoy:
        first = await _statuses(deployment, envoy, _BURST + 1, **{"x-forwarded-for": "203.0.113.9, 192.0.2.1"})
        second = await _statuses(deployment, envoy, 1, **{"x-forwarded-for": "203.0.113.9, 192.0.2.2"})
        assert (first, second) == ([200] * _BURST + [429], [200])
        peers = await eventually(envoy.peers, lambda peers: len(peers) == len(first + second))
        assert Counter(peers) == {"192.0.2.1": len(first), "192.0.2.2": 1}


async def test_behind_tcp_load_balancer(deployment: Deployment) -> None:
    """With the PROXY protocol the rate limit and the log use the client's address, and connections without it are closed."""
    async with edge(deployment, _LOW_RATE, _PROXY_PROTOCOL) as envoy:
        first = [await _proxied(deployment, envoy, "192.0.2.1") for _ in range(_BURST + 1)]
        assert (first, await _proxied(deployment, envoy, "192.0.2.2")) == ([b"200"] * _BURST + [b"429"], b"200")
        peers = await eventually(envoy.peers, lambda peers: len(peers) == len(first) + 1)
        assert Counter(peers) == {"192.0.2.1": len(first), "192.0.2.2": 1}
        async with Connection.to(Address("127.0.0.1", envoy.port)) as connection:
            assert await connection.closed(within=10)


async def _proxied(deployment: Deployment, envoy: Edge, client: str) -> bytes:
    """Return the HTTP status of one request that a load balancer passes on for a client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", envoy.port)
    head = f"GET {_BACKUPS} HTTP/1.1\r\nhost: test\r\nconnection: close\r\nauthorization: Bearer {deployment.token()}\r\n\r\n"
    writer.write(f"PROXY TCP4 {client} 127.0.0.1 40000 {envoy.port}\r\n{head}".encode())
    status = (await reader.readline()).split()[1]
    await reader.read()
    writer.close()
    await writer.wait_closed()
    return status


@pytest.mark.timeout(120)
async def test_memory_of_unread_responses_is_bounded(deployment: Deployment, add_backups: AddBackups) -> None:
    """Above its heap limit Envoy resets streams that hold unread responses, and serves other clients."""
    await add_backups(1000)
    heap = 96 << 20
    request = message(pb.ListBackupsRequest(folder_id="f1", page_size=1000).SerializeToString())
    async with edge(deployment, replaced("max_heap_size_bytes: 402653184", f"max_heap_size_bytes: {heap}")) as envoy:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                connection = await stack.enter_async_context(_unread(envoy))
                for _ in range(100):
                    await connection.call(_LIST, request, token=deployment.token())
            resets = "envoy.overload_actions.reset_high_memory_stream.count"
            await eventually(lambda: envoy.stat(resets), lambda count: count > 0, timeout_s=30)
            await eventually(lambda: envoy.stat("server.memory_allocated"), lambda allocated: allocated < heap, timeout_s=30)
            async with _channel(envoy, "127.0.0.3") as channel:
                await eventually(lambda: _list(channel, deployment), StatusCode.OK)


async def test_heap_limit(deployment: Deployment) -> None:
    """Above its heap limit, Envoy rejects requests, ends keep-alive, closes idle connections in seconds, and returns free memory."""
    async with edge(deployment, replaced("max_heap_size_bytes: 402653184", "max_heap_size_bytes: 1048576")) as envoy:
        async with Connection.to(Address("127.0.0.1", envoy.port)) as idle:
            url, headers = f"http://127.0.0.1:{envoy.port}{_BACKUPS}", {"authorization": f"Bearer {deployment.token()}"}
            reply = await eventually(lambda: asyncio.to_thread(fetch, url, "GET", headers), lambda reply: reply.status == 503)
            assert reply.body["code"] == StatusCode.UNAVAILABLE.value[0]
            assert await asyncio.to_thread(_keep_alive, envoy) == (503, "close")
            assert envoy.stat("overload.envoy.overload_actions.shrink_heap.active") == 1
            assert await idle.closed(within=10)


def _keep_alive(envoy: Edge) -> tuple[int, str | None]:
    """Make a request that does not ask to close its connection; return the status and the header `connection`."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", envoy.port, timeout=20)) as connection:
        connection.request("GET", _BACKUPS)
        response = connection.getresponse()
        return response.status, response.getheader("connection")


async def test_largest_page_over_rest(deployment: Deployment, sql: Sql) -> None:
    """A page of 1,000 backups whose ids are as long as possible is returned over HTTP/1.1 and HTTP/2."""
    text = "<" * 50  # a character that JSON may escape
    time = datetime(2026, 11, 20, tzinfo=UTC)
    await insert(sql, [Backup(f"{text[4:]}{number:04}", text, time, text, time, 2**53 - 1) for number in range(1000)])
    path = f"/managed-greenplum/v1/backups?folderId={'%3C' * 50}&pageSize=1000"
    token = deployment.token()
    async with edge(deployment) as envoy:
        reply = await asyncio.to_thread(fetch, f"http://127.0.0.1:{envoy.port}{path}", "GET", {"authorization": f"Bearer {token}"})
        assert reply.status == 200, reply.body
        assert len(reply.body["backups"]) == 1000
        async with Connection.to(Address("127.0.0.1", envoy.port), {_INITIAL_WINDOW_SIZE: 1 << 24}) as connection:
            connection.open_windows(1 << 24)
            head, *data = await connection.frames_of(await connection.get(path, token))
            assert connection.headers(head)[":status"] == "200"
            body = b"".join(frame.data for frame in data if isinstance(frame, DataFrame))
            assert json.loads(body) == reply.body


async def test_bad_calls_eject_no_replica(deployment: Deployment) -> None:
    """Calls that gRPC core would answer by resetting the stream are answered by Envoy, or corrected, and eject no replica."""
    async with edge(deployment) as envoy:
        without_te = [await _check(envoy, te=None) for _ in range(10)]
        with_get = [await _check(envoy, method="GET") for _ in range(10)]
        resets, ejections = envoy.stat("cluster.service.upstream_rq_rx_reset"), envoy.stat(f"{_EJECTIONS}.ejections_enforced_total")
    assert (set(without_te), set(with_get)) == ({StatusCode.OK.value[0]}, {StatusCode.UNIMPLEMENTED.value[0]})
    assert (resets, ejections) == (0, 0)


async def test_errors_of_grpc_core_keep_the_connection(deployment: Deployment) -> None:
    """An error of gRPC core itself does not close the connection between Envoy and a replica, even as the first response."""
    async with edge(deployment) as envoy:
        statuses = [await _check(envoy, body=b"\1\0\0\0\1x") for _ in range(4)]  # compressed, without grpc-encoding
        errors = envoy.stat("cluster.service.upstream_cx_protocol_error")
    assert (set(statuses), errors) == ({StatusCode.INTERNAL.value[0]}, 0)


async def test_malformed_metadata(deployment: Deployment) -> None:
    """Metadata that gRPC core cannot parse, and that the service does not read, does not fail a call."""
    async with edge(deployment) as envoy:
        for name in ("x-bin", "grpc-trace-bin", "grpc-previous-rpc-attempts", "grpc-retry-pushback-ms"):
            assert (name, await _check(envoy, headers=[(name, "!")])) == (name, StatusCode.OK.value[0])
            assert (name, await _check(envoy, trailers=[(name, "!")])) == (name, StatusCode.OK.value[0])


async def _check(
    envoy: Edge,
    *,
    method: str = "POST",
    te: str | None = "trailers",
    headers: Sequence[tuple[str, str]] = (),
    trailers: Sequence[tuple[str, str]] = (),
    body: bytes = message(b""),
) -> int:
    """Call `Health/Check` with any headers, trailers and body; return the number of the gRPC status."""
    pairs = [(":method", method), (":scheme", "http"), (":path", "/grpc.health.v1.Health/Check"), (":authority", "test")]
    pairs += [("content-type", "application/grpc"), *headers, *([("te", te)] if te else [])]
    async with Connection.to(Address("127.0.0.1", envoy.port)) as connection:
        stream = await connection.send_call(_encoded(pairs), body, end=not trailers)
        if trailers:
            connection.send(HeadersFrame(stream, data=_encoded(trailers), flags=["END_HEADERS", "END_STREAM"]))
        found: dict[str, str] = {}
        for frame in await connection.frames_of(stream):
            found |= connection.headers(frame) if isinstance(frame, HeadersFrame) else {}
        return int(found["grpc-status"])


def _encoded(headers: Sequence[tuple[str, str]]) -> bytes:
    return bytes(Encoder().encode([NeverIndexedHeaderTuple(*pair) for pair in headers]))


def _unread(envoy: Edge) -> contextlib.AbstractAsyncContextManager[Connection]:
    """Open a connection whose streams have a window of 0."""
    return Connection.to(Address("127.0.0.1", envoy.port), {4: 0})


@contextlib.asynccontextmanager
async def _channel(envoy: Edge, source: str) -> AsyncIterator[grpc.aio.Channel]:
    """Yield a channel through a relay that connects from the address `source`."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", envoy.port, local_addr=(source, 0))
        await asyncio.gather(_copy(reader, to_writer), _copy(to_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", options=options) as channel:
            yield channel


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _list(channel: grpc.aio.Channel, deployment: Deployment) -> StatusCode:
    call: Any = pb.BackupServiceStub(channel).List(
        pb.ListBackupsRequest(folder_id="f1", page_size=1), timeout=20, metadata=[("authorization", f"Bearer {deployment.token()}")]
    )
    code: StatusCode = await call.code()
    return code
