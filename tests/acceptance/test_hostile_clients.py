"""Hostile clients, at Envoy and directly at a replica, while another client is measured.

Mitigations:
- deploy/envoy.yaml has idle timeouts of routes and streams, and limits of headers and connections. Envoy has limits against floods.
- gRPC limits the size of a message before and after decompression.
- Shutdown does not wait for health watches (service/api/health.py), and closes the remaining calls after the grace period
  (`_stop_listening` of service/server.py).
"""

import asyncio
import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc import StatusCode
from hyperframe.frame import GoAwayFrame, HeadersFrame, RstStreamFrame

from service import pb
from service.address import Address
from tests.support.catalog import AddBackups
from tests.support.deployment import Deployment, ReplicaProcess, deployed, fetch, limit_connections
from tests.support.eventually import eventually
from tests.support.guarantees import Measure
from tests.support.hostile_clients import Flood, other_client
from tests.support.http2 import Connection, message
from tests.support.ports import free_ports

_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_INITIAL_WINDOW_SIZE = 4
_FRAMES = 50_000
_P99_S = 1.0
"""Bound of the p99 of another client's calls in the long form."""


async def _until_over(connection: Connection, stream: int) -> None:
    """Wait until the call ends or the connection closes."""
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
        while True:
            frame = await connection.frame()
            over = isinstance(frame, RstStreamFrame) or "END_STREAM" in frame.flags
            if isinstance(frame, GoAwayFrame) or (frame.stream_id == stream and over):
                return


@pytest.mark.slow
@pytest.mark.guarantee(12, "incomplete calls, and responses that are not read, through Envoy")
async def test_incomplete_calls_are_closed(deployment: Deployment, add_backups: AddBackups, *, long: bool, measure: Measure) -> None:
    """Calls with a missing, incomplete or unread message end within half a minute, and do not delay other clients."""
    await add_backups(1000)
    request = message(pb.ListBackupsRequest(folder_id="f1", page_size=1000).SerializeToString())
    address, token = Address("127.0.0.1", deployment.port), deployment.token()

    async def send_incomplete(body: bytes | None, *, end: bool) -> None:
        async with Connection.to(address) as connection:
            await _until_over(connection, await connection.call(_LIST, body, end=end, token=token))

    async def headers_without_end() -> None:
        async with Connection.to(address) as connection:
            connection.send(HeadersFrame(1, data=b"\x82"))  # :method GET, without END_HEADERS
            await _until_over(connection, 1)

    async def reads_nothing() -> None:
        async with Connection.to(address, {_INITIAL_WINDOW_SIZE: 0}) as connection:
            await _until_over(connection, await connection.call(_LIST, request, token=token))

    began = time.monotonic()
    async with other_client(deployment.channel()) as others, asyncio.timeout(45):
        await asyncio.gather(
            send_incomplete(None, end=True),
            send_incomplete(request[:-1], end=True),
            send_incomplete(request, end=False),
            headers_without_end(),
            reads_nothing(),
        )
    measure(f"closed after {time.monotonic() - began:.0f} s; {others}")
    assert others.p99 < (_P99_S if long else 3 * _P99_S)


@pytest.mark.guarantee(12, "more idle connections than the limit, through Envoy")
async def test_connections_are_bounded(database_url: str, *, measure: Measure) -> None:
    """Excess connections are closed immediately, other clients and scrapes are answered, and closed connections make room for new ones."""
    limit = 20
    async with deployed(database_url, edit_envoy=limit_connections(limit)) as deployment, other_client(deployment.channel()) as others:
        await others.more(1)
        async with contextlib.AsyncExitStack() as stack:
            address = Address("127.0.0.1", deployment.port)
            idle = [await stack.enter_async_context(Connection.to(address)) for _ in range(2 * limit)]
            closed = await asyncio.gather(*(connection.closed(within=3) for connection in idle))
            await others.more(10)
            scraped = await asyncio.to_thread(fetch, f"http://{deployment.metrics_address}/stats/prometheus")
        async with deployment.channel() as channel:
            stub = pb.BackupServiceStub(channel)
            await eventually(lambda: stub.List(pb.ListBackupsRequest(folder_id="f1")).code(), StatusCode.OK, timeout_s=20, period_s=0.1)
    measure(f"{len(idle)} opened, limit {limit}, {sum(closed)} closed; {others}")
    assert sum(closed) == len(idle) - limit + 1
    assert scraped.status == 200


@pytest.mark.guarantee(12, "floods of frames, through Envoy")
@pytest.mark.parametrize("kind", Flood.KINDS)
async def test_floods(deployment: Deployment, kind: str, *, long: bool, measure: Measure) -> None:
    """Envoy closes connections that flood it with frames, another client is answered, and no memory is lost."""
    flood = Flood(kind, _FRAMES)
    before = await _envoy_memory(deployment)
    async with other_client(deployment.channel()) as others:
        closed = await asyncio.gather(*(flood.send(deployment.port) for _ in range(4)))
        await others.more(100)
    grown = await _envoy_memory(deployment) - before
    measure(f"{kind}: {sum(closed)} of 4 connections closed; {others}; Envoy's memory grew by {grown >> 10} KiB")
    assert all(closed)
    assert others.p99 < (_P99_S if long else 3 * _P99_S)  # next to other tests, this process itself is late
    assert grown < 16 << 20


async def _envoy_memory(deployment: Deployment) -> int:
    """Return the memory that Envoy has allocated, in bytes."""
    [allocated] = (await deployment.stats("server.memory_allocated")).values()
    return allocated


async def _open_without_reading(stack: contextlib.AsyncExitStack, address: Address) -> None:
    """Open connections, each with a response, a stream of responses and a request that are not read or not complete."""
    request = message(pb.ListBackupsRequest(folder_id="f1", page_size=1000).SerializeToString())
    for _ in range(20):
        unread = await stack.enter_async_context(Connection.to(address, {_INITIAL_WINDOW_SIZE: 0}))
        await unread.call(_LIST, request)
        await unread.call("/grpc.health.v1.Health/Watch", message(b""))
        await unread.call(_LIST, None)


async def _send_bombs(address: Address, times: int) -> None:
    """Send requests that decompress to 4 MB, or have 5 MB, from twelve clients at the same time."""
    zeros = pb.GetBackupRequest(backup_id="\0" * 4_000_000).SerializeToString()

    async def send(data: bytes, encoding: grpc.Compression) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(str(address), options=options, compression=encoding) as channel:
            get: Any = channel.unary_unary("/yandex.cloud.mdb.greenplum.v1.BackupService/Get")
            for _ in range(times):
                assert await get(data, timeout=20).code() in (StatusCode.NOT_FOUND, StatusCode.RESOURCE_EXHAUSTED)

    await asyncio.gather(*(send(zeros, grpc.Compression.Gzip) for _ in range(8)))
    await asyncio.gather(*(send(b"x" * 5_000_000, grpc.Compression.NoCompression) for _ in range(4)))


@pytest.mark.guarantee(12, "gzip bombs, messages of 5 MB, and clients that do not read, directly at a replica")
async def test_hostile_clients_of_a_replica(
    database_url: str, add_backups: AddBackups, tmp_path: Path, *, long: bool, measure: Measure
) -> None:
    """Another client is answered, memory does not grow, and SIGTERM stops the replica within the grace period despite open calls."""
    await add_backups(1000)
    [port] = free_ports(1)
    settings = {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_DRAIN_DELAY": "0", "BACKUPS_SHUTDOWN_GRACE": "1"}
    replica = ReplicaProcess(port, settings, tmp_path / "log")
    times, address = 20 if long else 3, Address("127.0.0.1", port)
    async with replica.running():
        await replica.serving()
        memory = psutil.Process(replica.pid).memory_info
        async with contextlib.AsyncExitStack() as stack:
            others = await stack.enter_async_context(other_client(grpc.aio.insecure_channel(str(address))))
            await _open_without_reading(stack, address)
            used = [memory().rss >> 20]
            for _ in range(3):
                await _send_bombs(address, times)
                used.append(memory().rss >> 20)
            await others.finish()
            began = time.monotonic()
            status = await replica.stop(signal.SIGTERM)
            stopped_after = time.monotonic() - began
    measure(f"memory before, and after each {8 * times} bombs: {used} MiB; stopped after {stopped_after:.1f} s; {others}")
    assert status == 0
    assert stopped_after < 1 + 2 + 1
    assert used[-1] < used[0] + 100
    assert used[-1] < used[1] + 50
    assert others.p99 < (1 if long else 5)  # the same process serves the bombs
