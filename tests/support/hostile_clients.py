"""Floods of HTTP/2 frames, and a client whose calls are measured at the same time."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Callable

import grpc
from grpc import StatusCode
from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from service import pb
from service.address import Address
from tests.support.eventually import eventually
from tests.support.http2 import Connection, request_headers

_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_CANCEL = 8  # an error code of HTTP/2
_CHUNK = 100  # frames that are sent before other tasks of this process run

_FLOODS: dict[str, Callable[[Encoder, int], list[Frame]]] = {
    "RST_STREAM": lambda encoder, stream: [_headers(encoder, stream), RstStreamFrame(stream, error_code=_CANCEL)],
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
    """Frames of one kind, encoded in advance so that encoding does not delay other clients of this process."""

    KINDS = tuple(_FLOODS)

    def __init__(self, kind: str, times: int) -> None:
        encoder = Encoder()
        frames = [frame.serialize() for number in range(times) for frame in _FLOODS[kind](encoder, 2 * number + 1)]
        step = _CHUNK * len(frames) // times
        self._chunks = [b"".join(frames[start : start + step]) for start in range(0, len(frames), step)]

    async def send(self, port: int) -> bool:
        """Send the frames over one connection without reading from it. Return True if the server closed it within 5 s."""
        async with Connection.to(Address("127.0.0.1", port)) as connection:
            with contextlib.suppress(ConnectionError):
                for chunk in self._chunks:
                    connection.send_bytes(chunk)
                    await connection.drain()
                    await asyncio.sleep(0)
            return await connection.closed(within=5)


class OtherClient:
    """Client that makes one call after the other, each of which must succeed."""

    def __init__(self) -> None:
        self._durations: list[float] = []  # in seconds
        self._stop, self._stopped = asyncio.Event(), asyncio.Event()

    async def call(self, channel: grpc.aio.Channel) -> None:
        """Call until `finish`."""
        stub = pb.BackupServiceStub(channel)
        while not self._stop.is_set():
            began = time.perf_counter()
            assert await stub.List(pb.ListBackupsRequest(folder_id="f1", page_size=1), timeout=5).code() is StatusCode.OK
            self._durations.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
        self._stopped.set()

    async def finish(self) -> None:
        """Make no further call, and wait for the last one."""
        self._stop.set()
        await self._stopped.wait()

    async def more(self, count: int) -> None:
        """Wait for `count` further calls."""
        expected = len(self._durations) + count
        await eventually(lambda: len(self._durations), lambda calls: calls >= expected, timeout_s=60)

    @property
    def p99(self) -> float:
        """The 99th percentile of the durations, in seconds."""
        return statistics.quantiles(self._durations, n=100)[98]

    def __str__(self) -> str:
        return f"other client: {len(self._durations)} calls, p99 {self.p99 * 1000:.0f} ms"


@contextlib.asynccontextmanager
async def other_client(channel: grpc.aio.Channel) -> AsyncIterator[OtherClient]:
    """Run another client until the context is left; raise the error of a call that failed."""
    client = OtherClient()
    async with channel, asyncio.TaskGroup() as tasks:
        tasks.create_task(client.call(channel))
        yield client
        await client.finish()
