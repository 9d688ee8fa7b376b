"""Statuses of errors that Envoy or gRPC returns: each row of the table "Errors without details" of docs/api.md."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, TypeAlias

import grpc
import pytest
from grpc import StatusCode
from hyperframe.frame import HeadersFrame

from service import pb
from service.address import Address
from tests.support.deployment import Deployment, ReplicaProcess, Reply, fetch
from tests.support.edge import Edge, edge, replaced
from tests.support.eventually import eventually
from tests.support.http2 import Connection, message
from tests.support.repository import ROOT

_SERVICE = "/yandex.cloud.mdb.greenplum.v1.BackupService"
_BACKUPS = "/managed-greenplum/v1/backups"
_PUSHBACK = "grpc-retry-pushback-ms"
_LIST_F = message(b"\n\x01f")
_CODES_OF_REST = {400: StatusCode.INVALID_ARGUMENT, 501: StatusCode.UNIMPLEMENTED}
"""Codes of bad calls that are only possible over REST."""


class GrpcResponse(NamedTuple):
    """Status and trailers of a call."""

    status: str
    trailers: dict[str, str]


class Client(NamedTuple):
    """Client of one Envoy that sends the same bad requests over gRPC and REST."""

    port: int
    token: str

    async def grpc(self, method: str = f"{_SERVICE}/List", body: bytes = b"\n\x01f", headers: dict[str, str] | None = None) -> GrpcResponse:
        """Make one call over a new connection."""
        metadata = {"authorization": f"Bearer {self.token}"} | (headers or {})
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options) as channel:
            call_method: Any = channel.unary_unary(method)
            call = call_method(body, timeout=15, metadata=list(metadata.items()))
            return GrpcResponse((await call.code()).name, {key: str(value) for key, value in await call.trailing_metadata() or ()})

    async def framed(self, message: bytes, headers: dict[str, str], *, end: bool = True) -> GrpcResponse:
        """Make one call of `List` with a length-prefixed message, and return the headers and trailers of its response."""
        async with Connection.to(Address("127.0.0.1", self.port)) as connection:
            stream = await connection.call(f"{_SERVICE}/List", message, end=end, token=self.token, headers=headers)
            frames = await connection.frames_of(stream)
            trailers = {
                key: value for frame in frames if isinstance(frame, HeadersFrame) for key, value in connection.headers(frame).items()
            }
        return GrpcResponse(StatusCode(_code(int(trailers["grpc-status"]))).name, trailers)

    async def rest(
        self, path: str = f"{_BACKUPS}?folderId=f", method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """Make one request over a new connection."""
        headers = {"authorization": f"Bearer {self.token}"} | (headers or {})
        return await asyncio.to_thread(fetch, f"http://127.0.0.1:{self.port}{path}", method, headers, body=body)


Responses: TypeAlias = tuple[list[GrpcResponse], list[Reply]]
"""All responses to one bad call. The list of gRPC responses is empty if it is only possible over REST."""


def _many(count: int) -> dict[str, str]:
    return {f"x-{number}": "1" for number in range(count)}


async def _headers(client: Client) -> Responses:
    sizes = (17_000, 30_000, 60_000)
    over_grpc = [await client.grpc(headers={"authorization": "t" * size}) for size in sizes]
    over_rest = [await client.rest(headers={"authorization": "t" * size}) for size in (*sizes, 200_000)]
    over_rest.append(await client.rest(f"{_BACKUPS}?folderId={'f' * 17_000}"))
    return [*over_grpc, await client.grpc(headers=_many(500))], [*over_rest, await client.rest(headers=_many(600))]


async def _body(client: Client) -> Responses:
    bodies = [pb.GetBackupRequest(backup_id="b" * size).SerializeToString() for size in (17_000, 5_000_000)]
    return [await client.grpc(f"{_SERVICE}/Get", body) for body in bodies], [await client.rest(body=b"b" * 17_000)]


async def _until_rejected(client: Client) -> Responses:
    return [await eventually(client.grpc, lambda response: response.status != "OK")], [await client.rest()]


async def _unknown(client: Client) -> Responses:
    paths = [("/nowhere", "GET"), ("/", "GET"), (_BACKUPS, "POST"), (f"{_SERVICE}/List", "POST")]
    return [await client.grpc(f"{_SERVICE}/Delete"), await client.grpc("/nowhere")], [await client.rest(*path) for path in paths]


async def _watch(client: Client) -> Responses:
    return [await client.grpc("/grpc.health.v1.Health/Watch", b"")], [await client.rest("/grpc.health.v1.Health/Watch", "POST")]


async def _encoding(client: Client) -> Responses:
    headers = [{"grpc-encoding": encoding} for encoding in ("br", "gzip,br", "")]
    return [await client.framed(_LIST_F, each) for each in headers], [await client.rest(headers=each) for each in headers]


async def _compressed(client: Client) -> Responses:
    compressed = b"\1" + _LIST_F[1:]
    return [await client.framed(compressed, headers) for headers in ({}, {"grpc-encoding": "identity"}, {"grpc-encoding": "gzip"})], []


async def _transfer_encoding(client: Client) -> Responses:
    return [], [await client.rest(headers={"transfer-encoding": each}) for each in ("gzip", "identity", "gzip, chunked")]


async def _parameters(client: Client) -> Responses:
    queries = ("folderId=f&unknown=1", "folderId=f&pageSize=abc", "folderId=f&pageSize=9223372036854775808")
    return [], [await client.rest(f"{_BACKUPS}?{query}") for query in queries]


async def _unexpected_body(client: Client) -> Responses:
    return [], [await client.rest(body=b"not expected")]


async def _incomplete(client: Client) -> Responses:
    over_grpc = await client.framed(b"\0", {}, end=False)
    over_rest = await client.rest(headers={"content-length": "10"}, body=b"half")
    return [over_grpc], [over_rest]


def _code(number: int) -> tuple[int, str]:
    return next(code.value for code in StatusCode if code.value[0] == number)


async def _call(client: Client) -> Responses:
    return [await client.grpc()], [await client.rest()]


class BadCall(NamedTuple):
    """Way to cause the error of a row. Edits of deploy/envoy.yaml lower a limit so that it is reached sooner."""

    make: Callable[[Client], Awaitable[Responses]]
    edits: tuple[Callable[[str], str], ...] = ()
    state: Callable[[Deployment, Edge], contextlib.AbstractAsyncContextManager[None]] | None = None
    """State of the replicas while the call is made."""


@contextlib.asynccontextmanager
async def _stopped(deployment: Deployment, envoy: Edge) -> AsyncIterator[None]:
    """Suspend the processes of the replicas, so that they do not answer."""
    _signal(deployment, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(deployment, signal.SIGCONT)


def _signal(deployment: Deployment, number: int) -> None:
    for replica in deployment.replicas:
        assert isinstance(replica, ReplicaProcess)
        replica.send_signal(number)


@contextlib.asynccontextmanager
async def _occupied(deployment: Deployment, envoy: Edge) -> AsyncIterator[None]:
    """Keep one call waiting for a replica, which is the limit of the edited configuration."""
    async with _stopped(deployment, envoy):
        waiting = asyncio.ensure_future(Client(envoy.port, deployment.token()).grpc())
        try:
            await eventually(lambda: envoy.stat("cluster.service.upstream_rq_active"), 1)
            yield
        finally:
            waiting.cancel()


@contextlib.asynccontextmanager
async def _killed(deployment: Deployment, envoy: Edge) -> AsyncIterator[None]:
    for replica in deployment.replicas:
        await replica.stop(signal.SIGKILL)
    yield


_LOW_RATE = replaced("max_tokens: 250, tokens_per_fill: 250, fill_interval: 0.25s", "max_tokens: 5, fill_interval: 3600s")
_SHORT_DURATION = replaced("max_stream_duration: 15s, grpc_timeout_header_max: 15s", "max_stream_duration: 2s, grpc_timeout_header_max: 2s")

# The last row is last because it kills the replicas.
_BAD_CALLS = {
    "headers over 16 KiB together, such as a token that is too large": BadCall(_headers),
    "request over 16 KiB": BadCall(_body),
    "too many calls from one address": BadCall(_until_rejected, (_LOW_RATE,)),
    "unknown method or path": BadCall(_unknown),
    "`grpc.health.v1.Health/Watch` through Envoy": BadCall(_watch),
    "`grpc-encoding` other than `identity`, `deflate` and `gzip`": BadCall(_encoding),
    "compressed message that cannot be decompressed, or that has no `grpc-encoding`": BadCall(_compressed),
    "`Transfer-Encoding` other than `chunked` (HTTP/1.1)": BadCall(_transfer_encoding),
    "unknown query parameter, or a value of another type": BadCall(_parameters),
    "request body where none is expected": BadCall(_unexpected_body),
    "request that is not complete after 10 s": BadCall(_incomplete, (replaced("request_timeout: 10s", "request_timeout: 1s"),)),
    "Envoy is short of memory": BadCall(_until_rejected, (replaced("max_heap_size_bytes: 402653184", "max_heap_size_bytes: 1000000"),)),
    "more concurrent calls than Envoy forwards": BadCall(_call, (replaced("max_requests: 2000", "max_requests: 1"),), _occupied),
    "no response from a replica after 15 s": BadCall(_call, (_SHORT_DURATION,), _stopped),
    "no replica can be reached": BadCall(_call, (), _killed),
}


class Row(NamedTuple):
    """A row of the table."""

    call: str
    grpc: str
    rest: str

    @property
    def status(self) -> str:
        return self.grpc.partition(",")[0]


def _rows() -> list[Row]:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("### Errors without details")[2]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")][2:]
    return [Row(call.strip(), over_grpc.strip(), over_rest.strip()) for call, over_grpc, over_rest, _ in lines]


@pytest.mark.timeout(300)
async def test_table(deployment: Deployment) -> None:
    """Each bad call has the documented statuses, and each REST response is google.rpc.Status and is never cached."""
    rows = {row.call: row for row in _rows()}
    assert set(rows) == set(_BAD_CALLS)
    for name, bad_call in _BAD_CALLS.items():
        async with edge(deployment, *bad_call.edits) as envoy:
            client = Client(envoy.port, deployment.token())
            async with bad_call.state(deployment, envoy) if bad_call.state else contextlib.nullcontext():
                over_grpc, over_rest = await bad_call.make(client)
            _check(rows[name], over_grpc, over_rest)


def _check(row: Row, over_grpc: list[GrpcResponse], over_rest: list[Reply]) -> None:
    assert {response.status for response in over_grpc} == ({row.status} if row.status else set()), row
    assert {reply.status for reply in over_rest} == ({int(row.rest)} if row.rest else set()), row
    for response in over_grpc:
        assert "grpc-status-details-bin" not in response.trailers, row
        assert (_PUSHBACK in response.trailers) == ("pushback" in row.grpc), row
    for reply in over_rest:
        code = StatusCode[row.status] if row.status else _CODES_OF_REST[reply.status]
        assert (reply.body["code"], set(reply.body)) == (code.value[0], {"code", "message"}), row
        assert reply.body["message"], row
        assert (reply.headers["content-type"], reply.headers["cache-control"]) == ("application/json", "no-store"), row
        assert ("retry-after" in reply.headers) == ("pushback" in row.grpc), row


async def test_responses_are_not_cached(deployment: Deployment) -> None:
    """REST responses of the service have `cache-control: no-store`, with any status."""
    async with edge(deployment) as envoy:
        replies = await _replies(envoy, deployment)
    assert [reply.status for reply in replies] == [200, 400, 401, 404]
    assert {reply.headers["cache-control"] for reply in replies} == {"no-store"}


async def _replies(envoy: Edge, deployment: Deployment) -> list[Reply]:
    client = Client(envoy.port, deployment.token())
    return [
        await client.rest(),
        await client.rest(f"{_BACKUPS}?folderId={'f' * 51}"),
        await client.rest(headers={"authorization": ""}),
        await client.rest(f"{_BACKUPS}/none"),
    ]
