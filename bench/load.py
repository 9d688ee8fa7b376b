"""Load generator that sends prepared HTTP/2 frames, so that it uses about 20 µs of CPU per call.

The gRPC clients of Python and Go use more CPU than the measured servers, and h2load always sends the same body.
Responses without a message are counted as errors. `run_workloads` runs this module in a process of its own.
"""

import asyncio
import json
import random
import struct
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import uvloop
from grpc import StatusCode
from hpack import Decoder, Encoder

_ROOT = Path(__file__).parents[1]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_HEADER_TABLE_SIZE, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 1, 3, 4
_WINDOW = 2**31 - 1
_REFILL = 1 << 20  # bytes received before the connection's window is extended
_FRAME_HEADER = 9  # bytes: length 3, type 1, flags 1, stream 4
_PREFIX = 5  # bytes before a message: the compression flag and the length
_TICK = 0.01  # seconds

_STATUSES = {str(code.value[0]): code.name for code in StatusCode}


@dataclass(frozen=True)
class Workload:
    """Calls to send."""

    address: str
    path: str
    bodies: list[str]
    """Encoded requests in hexadecimal, one of which is selected at random for each call."""
    connections: int
    concurrent_calls: int
    """Concurrent calls of each connection. Not used with a rate."""
    seconds: float
    rate: float = 0
    """Calls per second of all connections, independent of responses. If 0, each response is followed by the next call."""
    token: str = ""
    deadline_s: int = 60
    """Deadline of each call. A later response is an error."""


@dataclass(frozen=True)
class Result:
    """Outcome of a workload."""

    calls: int
    """Calls whose response has a message."""
    failed: int
    errors: dict[str, int]
    """Numbers of errors by status, such as `UNAVAILABLE` or `RESOURCE_EXHAUSTED with pushback` (a retry delay), or else by `late`,
    `never sent`, `RST_STREAM` with its code, `connection lost` or `no status`."""
    seconds: float
    p50_ms: float
    p99_ms: float
    client_us: float
    """CPU time of this client per call."""

    @property
    def answered_per_second(self) -> float:
        """Responses per second, up to the last one."""
        return self.calls / self.seconds


def run_workloads(*workloads: Workload) -> list[Result]:
    """Run all workloads at the same time, in a process of their own, and return their results."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        cwd=_ROOT,
        input=json.dumps([asdict(workload) for workload in workloads]).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return [Result(**result) for result in json.loads(done.stdout)]


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _headers(workload: Workload) -> bytes:
    """Return the headers of a call without its deadline. They are never indexed, so the same bytes can be sent for each call."""
    headers = [(":method", "POST"), (":scheme", "http"), (":path", workload.path), (":authority", workload.address),
               ("content-type", "application/grpc"), ("te", "trailers")]  # fmt: skip
    headers += [("authorization", f"Bearer {workload.token}")] if workload.token else []
    return bytes(Encoder().encode([(name, value, True) for name, value in headers], huffman=False))


@lru_cache(1000)
def _error(trailers: bytes) -> str:
    """Return the name of the status in a block of trailers."""
    headers = {str(name): str(value) for name, value in Decoder().decode(trailers)}
    status = _STATUSES.get(headers.get("grpc-status", ""), "no status")
    return f"{status} with pushback" if "grpc-retry-pushback-ms" in headers else status


class _Connection(asyncio.Protocol):
    """Connection that sends calls until the time is over.

    Like other clients, it has at most as many open calls as the server allows. Further calls wait here.
    """

    def __init__(self, workload: Workload, ends_at: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._workload, self._ends_at = workload, ends_at
        self._due = random.random()  # connections do not send at the same moment
        self._headers = _headers(workload)
        self._bodies = [bytes.fromhex(body) for body in workload.bodies]
        self._received = bytearray()
        self._unacknowledged = 0
        self._next_stream = 1
        self._waiting: deque[float] = deque()
        self._max_open = 100  # until the server's SETTINGS arrive
        self._open: dict[int, float] = {}
        self._sizes: dict[int, int] = {}
        self.latencies: list[float] = []
        self.errors: Counter[str] = Counter()
        self.done: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        settings = struct.pack(">HIHI", _HEADER_TABLE_SIZE, 0, _INITIAL_WINDOW_SIZE, _WINDOW)
        opening = _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, (_WINDOW - 65535).to_bytes(4))
        transport.write(_PREFACE + opening)
        if self._workload.rate:
            self._send_at_rate(time.perf_counter())
        else:
            self._waiting.extend([time.perf_counter()] * self._workload.concurrent_calls)
            transport.write(self._calls())

    def _send_at_rate(self, last: float) -> None:
        if self._transport.is_closing():
            return
        now = time.perf_counter()
        self._due += (now - last) * self._workload.rate / self._workload.connections
        self._waiting.extend([now] * int(self._due))
        self._due %= 1
        self._transport.write(self._calls())
        if now < self._ends_at:
            self._loop.call_later(_TICK, self._send_at_rate, now)
        else:
            self._close_after_the_last()

    def _close_after_the_last(self) -> None:
        if not self._open and not self._waiting:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if lost := len(self._open) + len(self._waiting):
            self.errors["connection lost"] += lost
        if not self.done.done():
            self.done.set_result(None)

    def _calls(self) -> bytes:
        """Return the frames of waiting calls that the server allows. Drop calls whose deadline has passed."""
        calls, now = [], time.perf_counter()
        while self._waiting and len(self._open) < self._max_open:
            began = self._waiting.popleft()
            if (left := self._workload.deadline_s - (now - began)) > 0:
                calls.append(self._call(began, left))
            else:
                self.errors["never sent"] += 1
        return b"".join(calls)

    def _call(self, began: float, left: float) -> bytes:
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        body = random.choice(self._bodies)
        self._open[stream], self._sizes[stream] = began, 0
        message = b"\0" + len(body).to_bytes(4) + body
        timeout = b"%dm" % (left * 1000 + 1)
        headers = self._headers + b"\x10\x0cgrpc-timeout" + bytes((len(timeout),)) + timeout
        return _frame(_HEADERS, _END_HEADERS, stream, headers) + _frame(_DATA, _END_STREAM, stream, message)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        replies: list[bytes] = []
        at = 0
        while len(received) - at >= _FRAME_HEADER:
            end = at + _FRAME_HEADER + int.from_bytes(received[at : at + 3])
            if len(received) < end:
                break
            stream = int.from_bytes(received[at + 5 : at + _FRAME_HEADER])
            self._handle(received[at + 3], received[at + 4], stream, received[at + _FRAME_HEADER : end], replies)
            at = end
        del received[:at]
        if self._unacknowledged > _REFILL:
            replies.append(_frame(_WINDOW_UPDATE, 0, 0, self._unacknowledged.to_bytes(4)))
            self._unacknowledged = 0
        self._transport.write(b"".join(replies) + self._calls())
        if time.perf_counter() >= self._ends_at:
            self._close_after_the_last()

    def _handle(self, kind: int, flags: int, stream: int, payload: bytearray, replies: list[bytes]) -> None:
        if kind == _DATA:
            self._sizes[stream] += len(payload)
            self._unacknowledged += len(payload)
        elif kind == _PING and not flags & _ACK:
            replies.append(_frame(_PING, _ACK, 0, bytes(payload)))
        elif kind == _SETTINGS and not flags & _ACK:
            settings = dict(struct.iter_unpack(">HI", payload))
            self._max_open = settings.get(_MAX_CONCURRENT_STREAMS, self._max_open)
            replies.append(_frame(_SETTINGS, _ACK, 0))
        elif kind == _GOAWAY:
            self._transport.close()
        is_last = kind in (_DATA, _HEADERS) and flags & _END_STREAM
        if (is_last or kind == _RST_STREAM) and stream in self._open:
            self._finish(stream, kind, payload)

    def _finish(self, stream: int, kind: int, payload: bytearray) -> None:
        now = time.perf_counter()
        began, size = self._open.pop(stream), self._sizes.pop(stream)
        is_late = now - began > self._workload.deadline_s
        if kind == _RST_STREAM:  # gRPC resets the stream when the deadline passes on either side
            self.errors["late" if is_late else f"RST_STREAM {int.from_bytes(payload)}"] += 1
        elif size <= _PREFIX:  # an error has no message
            self.errors[_error(bytes(payload)) if kind == _HEADERS else "no status"] += 1
        elif is_late:
            self.errors["late"] += 1
        else:
            self.latencies.append(now - began)
        if now < self._ends_at and not self._workload.rate:
            self._waiting.append(now)


async def _run(workload: Workload) -> Result:
    """Send the calls of one workload."""
    loop = asyncio.get_running_loop()
    host, port = workload.address.rsplit(":", 1)
    began, cpu = time.perf_counter(), time.process_time()
    ends_at = began + workload.seconds
    created: list[tuple[Any, _Connection]] = [
        await loop.create_connection(lambda: _Connection(workload, ends_at), host, int(port)) for _ in range(workload.connections)
    ]
    connections = [connection for _, connection in created]
    timeout = workload.seconds + max(workload.deadline_s, 30)
    await asyncio.wait_for(asyncio.gather(*(connection.done for connection in connections)), timeout)
    latencies = sorted(latency for connection in connections for latency in connection.latencies)
    calls = len(latencies)
    errors = sum((connection.errors for connection in connections), Counter[str]())
    return Result(
        calls=calls,
        failed=errors.total(),
        errors=dict(errors),
        seconds=time.perf_counter() - began,
        p50_ms=latencies[calls // 2] * 1000 if calls else 0,
        p99_ms=latencies[calls * 99 // 100] * 1000 if calls else 0,
        client_us=(time.process_time() - cpu) / max(calls, 1) * 1e6,
    )


async def _run_all(workloads: list[Workload]) -> list[Result]:
    return await asyncio.gather(*map(_run, workloads))


if __name__ == "__main__":
    results = uvloop.run(_run_all([Workload(**workload) for workload in json.load(sys.stdin)]))
    json.dump([asdict(result) for result in results], sys.stdout)
