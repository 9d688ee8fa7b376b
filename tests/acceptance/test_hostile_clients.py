"""Clients that mean harm, behind Envoy: what they do is ended, and is nothing to the others.

Mitigations: in deploy/envoy.yaml, route and stream idle timeouts, the limits of headers and of connections, and Envoy's own limits against
floods; directly at a replica, gRPC's limit of a message, which holds for what it is unpacked too, health watchers that are not waited for
(service/api/health.py), and a grace after which what is left is ended (`_stop_listening` of service/server.py).
"""

import asyncio
import contextlib
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc import StatusCode
from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from service import pb
from service.address import Address
from tests.support.catalog import AddBackups
from tests.support.deployment import Deployment, ReplicaProcess, deployed, fetch
from tests.support.guarantees import Measure
from tests.support.http2 import Connection, message, request_headers
from tests.support.ports import free_ports

_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_INITIAL_WINDOW_SIZE = 4
_FRAMES, _CHUNK = 50_000, 100
_P99_S = 1.0
"""Rate of the other client's calls, in the long form."""


class Others:
    """Send calls of another client in sequence, all of which must be answered."""

    def __init__(self) -> None:
        self._durations: list[float] = []  # in seconds
        self._done = asyncio.Event()
        self.calling: asyncio.Future[None] | None = None

    async def end(self) -> None:
        """Waits for the last call."""
        self._done.set()
        if self.calling:
            await self.calling

    async def call(self, channel: grpc.aio.Channel) -> None:
        stub = pb.BackupServiceStub(channel)
        while not self._done.is_set():
            began = time.perf_counter()
            assert await stub.List(pb.ListBackupsRequest(folder_id="f1", page_size=1), timeout=5).code() is StatusCode.OK
            self._durations.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)

    async def more(self, count: int) -> None:
        """Waits for so many further calls."""
        until = len(self._durations) + count
        async with asyncio.timeout(60):
            while len(self._durations) < until:
                assert self.calling
                assert not self.calling.done()
                await asyncio.sleep(0.01)

    @property
    def p99(self) -> float:
        """In seconds."""
        return statistics.quantiles(self._durations, n=100)[98]

    def __str__(self) -> str:
        return f"others: {len(self._durations)} calls, p99 {self.p99 * 1000:.0f} ms"


@contextlib.asynccontextmanager
async def _others(channel: grpc.aio.Channel) -> AsyncIterator[Others]:
    others = Others()
    async with channel:
        others.calling = asyncio.ensure_future(others.call(channel))
        try:
            yield others
        finally:
            await others.end()


async def _until_over(connection: Connection, stream: int) -> None:
    """Waits until a call is over, however it ends."""
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
        while True:
            frame = await connection.frame()
            over = isinstance(frame, RstStreamFrame) or "END_STREAM" in frame.flags
            if isinstance(frame, GoAwayFrame) or (frame.stream_id == stream and over):
                return


@pytest.mark.guarantee(12, "calls that are half sent, or whose answers nobody reads, through Envoy")
async def test_half_done_calls_are_ended(deployment: Deployment, add_backups: AddBackups, *, long: bool, measure: Measure) -> None:
    """Calls with a missing, incomplete or unread message end within half a minute, and do not delay other clients."""
    await add_backups(1000)
    request = message(pb.ListBackupsRequest(folder_id="f1", page_size=1000).SerializeToString())
    address, token = Address("127.0.0.1", deployment.port), deployment.token()

    async def half_done(body: bytes | None, *, end: bool) -> None:
        async with Connection.to(address) as connection:
            await _until_over(connection, await connection.call(_LIST, body, end=end, token=token))

    async def headers_without_end() -> None:
        async with Connection.to(address) as connection:
            connection.send(HeadersFrame(1, data=b"\x82"))  # :method GET, and more to come
            await _until_over(connection, 1)

    async def reads_nothing() -> None:
        async with Connection.to(address, {_INITIAL_WINDOW_SIZE: 0}) as connection:
            await _until_over(connection, await connection.call(_LIST, request, token=token))

    began = time.monotonic()
    async with _others(deployment.channel()) as others, asyncio.timeout(45):
        await asyncio.gather(
            half_done(None, end=True),
            half_done(request[:-1], end=True),
            half_done(request, end=False),
            headers_without_end(),
            reads_nothing(),
        )
    measure(f"over after {time.monotonic() - began:.0f} s; {others}")
    assert others.p99 < (_P99_S if long else 3 * _P99_S)


@pytest.mark.guarantee(12, "ever more connections that say nothing, through Envoy")
async def test_connections_are_bounded(database_url: str, *, measure: Measure) -> None:
    """What is too much is closed at once; who is connected is served on, scrapes are answered, and there is room again afterwards."""
    limit = 20
    async with deployed(database_url, max_connections=limit) as deployment, _others(deployment.channel()) as others:
        await others.more(1)
        async with contextlib.AsyncExitStack() as stack:
            address = Address("127.0.0.1", deployment.port)
            idle = [await stack.enter_async_context(Connection.to(address)) for _ in range(2 * limit)]
            closed = await asyncio.gather(*(connection.closed(within=3) for connection in idle))
            await others.more(10)
            scraped = await asyncio.to_thread(fetch, f"http://{deployment.metrics_address}/stats/prometheus")
        async with deployment.channel() as channel, asyncio.timeout(20):
            while await pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="f1")).code() is not StatusCode.OK:
                await asyncio.sleep(0.1)
    measure(f"{len(idle)} opened where {limit} may be, {sum(closed)} closed; {others}")
    assert sum(closed) == len(idle) - limit + 1
    assert scraped.status == 200


_FLOODS: dict[str, Callable[[Encoder, int], list[Frame]]] = {
    "RST_STREAM": lambda encoder, stream: [_headers(encoder, stream), RstStreamFrame(stream, error_code=8)],
    "SETTINGS": lambda encoder, stream: [SettingsFrame()],
    "PING": lambda encoder, stream: [PingFrame(opaque_data=b"12345678")],
    "CONTINUATION": lambda encoder, stream: [
        ContinuationFrame(1, data=b"\x84" * 100) if stream > 1 else HeadersFrame(1, data=b"\x82"),
    ],
    "empty DATA": lambda encoder, stream: [DataFrame(1, data=b"") if stream > 1 else _headers(encoder, 1)],
}


def _headers(encoder: Encoder, stream: int) -> Frame:
    return HeadersFrame(stream, data=request_headers(encoder, _LIST), flags=["END_HEADERS"])


class Flood:
    """Return frames of a kind, built in advance so that building them does not delay the other client in this process."""

    KINDS = tuple(_FLOODS)

    def __init__(self, kind: str, times: int) -> None:
        encoder = Encoder()
        frames = [frame.serialize() for number in range(times) for frame in _FLOODS[kind](encoder, 2 * number + 1)]
        step = _CHUNK * len(frames) // times
        self._chunks = [b"".join(frames[start : start + step]) for start in range(0, len(frames), step)]

    async def send(self, port: int) -> bool:
        """Over a connection of its own, of which nothing is read; whether that was closed."""
        async with Connection.to(Address("127.0.0.1", port)) as connection:
            with contextlib.suppress(ConnectionError):
                for chunk in self._chunks:
                    connection.send_bytes(chunk)
                    await connection.drain()
                    await asyncio.sleep(0)
            return await connection.closed(within=5)


@pytest.mark.guarantee(12, "floods of frames, through Envoy")
@pytest.mark.parametrize("kind", Flood.KINDS)
async def test_floods(deployment: Deployment, kind: str, *, long: bool, measure: Measure) -> None:
    """Others' calls are answered while connections flood Envoy with frames; what costs more than an answer is closed, and leaves none."""
    flood = Flood(kind, _FRAMES)
    before = await _envoys_memory(deployment)
    async with _others(deployment.channel()) as others:
        closed = await asyncio.gather(*(flood.send(deployment.port) for _ in range(4)))
        await others.more(100)
    grown = await _envoys_memory(deployment) - before
    measure(f"{kind}: {sum(closed)} of 4 connections closed; {others}; Envoy's memory grew by {grown >> 10} KiB")
    assert all(closed)
    assert others.p99 < (_P99_S if long else 3 * _P99_S)  # beside other tests, this process is late itself
    assert grown < 16 << 20


async def _envoys_memory(deployment: Deployment) -> int:
    [allocated] = (await deployment.stats("server.memory_allocated")).values()
    return allocated


@pytest.mark.guarantee(12, "gzip bombs, messages of 5 MB, and peers that read nothing, directly at a replica")
async def test_directly(database_url: str, add_backups: AddBackups, tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """Other clients are answered, memory does not grow, and SIGTERM stops the server within its grace period despite such peers."""
    await add_backups(1000)
    [port] = free_ports(1)
    settings = {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_DRAIN_DELAY": "0", "BACKUPS_SHUTDOWN_GRACE": "1"}
    replica = ReplicaProcess(port, settings, tmp_path / "log")
    times = 20 if long else 3
    address = Address("127.0.0.1", port)
    zeros = pb.GetBackupRequest(backup_id="\0" * 4_000_000).SerializeToString()
    request = message(pb.ListBackupsRequest(folder_id="f1", page_size=1000).SerializeToString())

    async def throw(data: bytes, encoding: grpc.Compression) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(str(address), options=options, compression=encoding) as channel:
            get: Any = channel.unary_unary("/yandex.cloud.mdb.greenplum.v1.BackupService/Get")
            for _ in range(times):
                assert await get(data, timeout=20).code() in (StatusCode.NOT_FOUND, StatusCode.RESOURCE_EXHAUSTED)

    async with replica.running():
        await replica.serving()
        memory = psutil.Process(replica.pid).memory_info
        async with contextlib.AsyncExitStack() as stack:
            others = await stack.enter_async_context(_others(grpc.aio.insecure_channel(str(address))))
            for _ in range(20):
                deaf = await stack.enter_async_context(Connection.to(address, {_INITIAL_WINDOW_SIZE: 0}))
                await deaf.call(_LIST, request)
                await deaf.call("/grpc.health.v1.Health/Watch", message(b""))
                await deaf.call(_LIST, None)
            used = [memory().rss >> 20]
            for _ in range(3):
                await asyncio.gather(*(throw(zeros, grpc.Compression.Gzip) for _ in range(8)))
                await asyncio.gather(*(throw(b"x" * 5_000_000, grpc.Compression.NoCompression) for _ in range(4)))
                used.append(memory().rss >> 20)
            await others.end()
            began = time.monotonic()
            status = await replica.stop(signal.SIGTERM)
            ended = time.monotonic() - began
    measure(f"memory before, and after each {8 * times} bombs: {used} MiB; ended after {ended:.1f} s; {others}")
    assert status == 0
    assert ended < 1 + 2 + 1
    assert used[-1] < used[0] + 100
    assert used[-1] < used[1] + 50
    assert others.p99 < (1 if long else 5)  # one process serves them, and bombs
