"""Clients that mean harm, behind Envoy: what they do is ended, and is nothing to the others.

Mitigations, all in deploy/envoy.yaml: route and stream idle timeouts, the limits of headers, and Envoy's own limits against floods.
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
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from service import pb
from service.settings import Address
from tests.acceptance.bars import Figure
from tests.acceptance.deployment import Deployment, ReplicaProcess
from tests.api.http2 import Connection, message
from tests.conftest import AddBackups, free_ports

_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_INITIAL_WINDOW_SIZE = 4
_FRAMES = 50_000


class Others:
    """Calls of somebody else, one after the other, all of which are answered."""

    def __init__(self) -> None:
        self.durations: list[float] = []
        """Of each, in seconds."""
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
            self.durations.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)

    def __str__(self) -> str:
        return f"others: {len(self.durations)} calls, p99 {statistics.quantiles(self.durations, n=100)[98] * 1000:.0f} ms"


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


@pytest.mark.bar(12, "calls that are half sent, or whose answers nobody reads, through Envoy")
async def test_half_done_calls_are_ended(deployment: Deployment, add_backups: AddBackups, *, figure: Figure) -> None:
    """Calls that wait for their client for ever: closed without a message, with less of it than announced, never closed, never begun
    in full, and an answer that nobody reads. Each is over within half a minute, and holds nobody up."""
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
    figure(f"over after {time.monotonic() - began:.0f} s; {others}")


def _headers(connection: Connection, stream: int) -> Frame:
    return HeadersFrame(stream, data=connection.request_headers(_LIST), flags=["END_HEADERS"])


FLOODS: dict[str, Callable[[Connection, int], list[Frame]]] = {
    "RST_STREAM": lambda connection, stream: [_headers(connection, stream), RstStreamFrame(stream, error_code=8)],
    "SETTINGS": lambda connection, stream: [SettingsFrame()],
    "PING": lambda connection, stream: [PingFrame(opaque_data=b"12345678")],
    "CONTINUATION": lambda connection, stream: [
        ContinuationFrame(1, data=b"\x84" * 100) if stream > 1 else HeadersFrame(1, data=b"\x82"),
    ],
    "empty DATA": lambda connection, stream: [DataFrame(1, data=b"") if stream > 1 else _headers(connection, 1)],
}


async def flood(port: int, kind: str, times: int) -> int:
    """How often it could send before it was closed."""
    async with Connection.to(Address("127.0.0.1", port)) as connection:
        with contextlib.suppress(OSError):
            for number in range(times):
                connection.send(*FLOODS[kind](connection, 2 * number + 1))
                if number % 100 == 0:
                    await connection.drain()
                    await asyncio.sleep(0)
            return times
        return number


@pytest.mark.bar(12, "floods of frames, through Envoy")
@pytest.mark.parametrize("kind", FLOODS)
async def test_floods(deployment: Deployment, kind: str, *, figure: Figure) -> None:
    """Others' calls are answered while connections flood Envoy with frames; what costs more than an answer is closed."""
    async with _others(deployment.channel()) as others:
        sent = await asyncio.gather(*(flood(deployment.port, kind, _FRAMES) for _ in range(4)))
        while len(others.durations) < 20:
            await asyncio.sleep(0.01)
    figure(f"{kind}: {', '.join(map(str, sent))} of {_FRAMES} taken; {others}")
    if kind not in ("PING", "SETTINGS"):
        assert max(sent) < _FRAMES


@pytest.mark.bar(12, "gzip bombs, messages of 5 MB, and peers that read nothing, directly at a replica")
async def test_directly(database_url: str, add_backups: AddBackups, tmp_path: Path, *, long: bool, figure: Figure) -> None:
    """Others are answered meanwhile, memory does not grow, and SIGTERM ends the server within its grace, such peers being there."""
    await add_backups(1000)
    [port] = free_ports(1)
    settings = {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_DRAIN_DELAY": "0", "BACKUPS_SHUTDOWN_GRACE": "1"}
    replica = ReplicaProcess(port, settings, tmp_path / "log")
    times = 20 if long else 3
    await replica.start()
    address = Address("127.0.0.1", port)
    zeros = pb.GetBackupRequest(backup_id="\0" * 4_000_000).SerializeToString()
    request = message(pb.ListBackupsRequest(folder_id="f1", page_size=1000).SerializeToString())

    async def throw(data: bytes, encoding: grpc.Compression) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(str(address), options=options, compression=encoding) as channel:
            get: Any = channel.unary_unary("/yandex.cloud.mdb.greenplum.v1.BackupService/Get")
            for _ in range(times):
                assert await get(data, timeout=20).code() in (StatusCode.NOT_FOUND, StatusCode.RESOURCE_EXHAUSTED)

    try:
        await replica.serving()
        memory = psutil.Process(replica.pid).memory_info
        async with contextlib.AsyncExitStack() as stack:
            others = await stack.enter_async_context(_others(grpc.aio.insecure_channel(str(address))))
            for _ in range(20):
                deaf = await stack.enter_async_context(Connection.to(address, {_INITIAL_WINDOW_SIZE: 0}))
                await deaf.call(_LIST, request)
                await deaf.call("/grpc.health.v1.Health/Watch", message(b""))
                await deaf.call(_LIST, None)
            used = []
            for _ in range(3):
                await asyncio.gather(*(throw(zeros, grpc.Compression.Gzip) for _ in range(8)))
                await asyncio.gather(*(throw(b"x" * 5_000_000, grpc.Compression.NoCompression) for _ in range(4)))
                used.append(memory().rss >> 20)
            await others.end()
            began = time.monotonic()
            status = await replica.end(signal.SIGTERM)
            ended = time.monotonic() - began
    finally:
        with contextlib.suppress(ProcessLookupError):
            await replica.end(signal.SIGKILL)
    figure(f"memory after each {8 * times} bombs: {used} MiB; ended after {ended:.1f} s; {others}")
    assert status == 0
    assert ended < 1 + 2 + 1
    assert used[-1] < used[0] + 100  # it does not grow
