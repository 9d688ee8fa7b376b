"""Clients that mean harm, behind Envoy: what they do is ended, and is nothing to the others.

Mitigations, all in deploy/envoy.yaml: route and stream idle timeouts, the limits of headers, and Envoy's own limits against floods.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Callable

import pytest
from grpc import StatusCode
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from service import pb
from service.settings import Address
from tests.acceptance.deployment import Deployment
from tests.api.http2 import Connection, message
from tests.conftest import AddBackups

_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_INITIAL_WINDOW_SIZE = 4
_FRAMES = 50_000


@contextlib.asynccontextmanager
async def _others(deployment: Deployment) -> AsyncIterator[list[float]]:
    """Calls of somebody else, one after the other, all of which are answered; how long each took, in seconds."""
    durations: list[float] = []
    done = asyncio.Event()

    async def call() -> None:
        async with deployment.channel() as channel:
            stub = pb.BackupServiceStub(channel)
            while not done.is_set():
                began = time.perf_counter()
                assert await stub.List(pb.ListBackupsRequest(folder_id="f1", page_size=1), timeout=5).code() is StatusCode.OK
                durations.append(time.perf_counter() - began)
                await asyncio.sleep(0.01)

    calling = asyncio.ensure_future(call())
    try:
        yield durations
    finally:
        done.set()
        await calling
        print(f"others: {len(durations)} calls, p99 {statistics.quantiles(durations, n=100)[98] * 1000:.0f} ms")


async def _until_over(connection: Connection, stream: int) -> None:
    """Waits until a call is over, however it ends."""
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
        while True:
            frame = await connection.frame()
            over = isinstance(frame, RstStreamFrame) or "END_STREAM" in frame.flags
            if isinstance(frame, GoAwayFrame) or (frame.stream_id == stream and over):
                return


async def test_half_done_calls_are_ended(deployment: Deployment, add_backups: AddBackups) -> None:
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

    async with _others(deployment), asyncio.timeout(45):
        await asyncio.gather(
            half_done(None, end=True),
            half_done(request[:-1], end=True),
            half_done(request, end=False),
            headers_without_end(),
            reads_nothing(),
        )


def _headers(connection: Connection, stream: int) -> Frame:
    return HeadersFrame(stream, data=connection.request_headers(_LIST), flags=["END_HEADERS"])


_FLOODS: dict[str, Callable[[Connection, int], list[Frame]]] = {
    "RST_STREAM": lambda connection, stream: [_headers(connection, stream), RstStreamFrame(stream, error_code=8)],
    "SETTINGS": lambda connection, stream: [SettingsFrame()],
    "PING": lambda connection, stream: [PingFrame(opaque_data=b"12345678")],
    "CONTINUATION": lambda connection, stream: [
        ContinuationFrame(1, data=b"\x84" * 100) if stream > 1 else HeadersFrame(1, data=b"\x82"),
    ],
    "empty DATA": lambda connection, stream: [DataFrame(1, data=b"") if stream > 1 else _headers(connection, 1)],
}


@pytest.mark.parametrize("kind", _FLOODS)
async def test_floods(deployment: Deployment, kind: str) -> None:
    """Others' calls are answered while connections flood Envoy with frames; what costs more than an answer is closed."""

    async def flood() -> int:
        """How often it could send before it was closed."""
        async with Connection.to(Address("127.0.0.1", deployment.port)) as connection:
            with contextlib.suppress(OSError):
                for number in range(_FRAMES):
                    connection.send(*_FLOODS[kind](connection, 2 * number + 1))
                    if number % 100 == 0:
                        await connection.drain()
                        await asyncio.sleep(0)
                return _FRAMES
            return number

    async with _others(deployment) as durations:
        sent = await asyncio.gather(*(flood() for _ in range(4)))
        print(f"{kind}: closed after {sent}")
        while len(durations) < 20:
            await asyncio.sleep(0.01)
    if kind not in ("PING", "SETTINGS"):
        assert max(sent) < _FRAMES
