"""A client that costs little: gRPC calls as HTTP/2 frames made beforehand, over a number of connections, each with calls at once.

h2load sends one and the same body all the time, and so asks for one hot id; the usual clients take more CPU than the servers measured
here. This one takes some 20 µs a call. What has no message is an error, and counts apart.

    python -m bench.load < orders.json > results.json
"""

import asyncio
import json
import random
import struct
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import uvloop
from grpc import StatusCode
from hpack import Decoder, Encoder

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_HEADER_TABLE_SIZE, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 1, 3, 4
_WINDOW = 2**31 - 1
_REFILL = 1 << 20  # bytes received, before the connection's window is opened anew
_PREFIX = 5  # bytes before a message: whether it is compressed, and its length
_TICK = 0.01  # seconds

_STATUSES = {str(code.value[0]): code.name for code in StatusCode}


@dataclass(frozen=True)
class Orders:
    """What to call, and how."""

    address: str
    path: str
    bodies: list[str]
    """Requests, in hexadecimal; drawn at random."""
    connections: int
    calls_at_once: int
    """Of each connection, where there is no rate."""
    seconds: float
    rate: float = 0
    """Calls a second of all connections together, whatever becomes of those before; 0: each answer is followed by the next call."""
    token: str = ""
    deadline_s: int = 60
    """Of each call; an answer that comes later is an error."""


@dataclass(frozen=True)
class Result:
    """What came of it."""

    calls: int
    """With a message."""
    failed: int
    errors: dict[str, int]
    """By their status, and whether it came with pushback, which says when to come again; `late`, `never sent`, `RST_STREAM` with its code,
    `connection lost`, `no status`."""
    seconds: float
    bytes_a_call: float
    p50_ms: float
    p99_ms: float
    client_us: float
    """CPU of this client, a call."""

    @property
    def answered_per_second(self) -> float:
        """Until the last of them was answered."""
        return self.calls / self.seconds


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _headers(orders: Orders) -> bytes:
    """A call's headers but its deadline, none of which is left in HPACK's table: so that the same bytes serve all calls."""
    headers = [(":method", "POST"), (":scheme", "http"), (":path", orders.path), (":authority", orders.address),
               ("content-type", "application/grpc"), ("te", "trailers")]  # fmt: skip
    headers += [("authorization", f"Bearer {orders.token}")] if orders.token else []
    return bytes(Encoder().encode([(name, value, True) for name, value in headers], huffman=False))


@lru_cache(1000)
def _error(trailers: bytes) -> str:
    """The status in a block of trailers."""
    headers = {str(name): str(value) for name, value in Decoder().decode(trailers)}
    status = _STATUSES.get(headers.get("grpc-status", ""), "no status")
    return f"{status} with pushback" if "grpc-retry-pushback-ms" in headers else status


class _Connection(asyncio.Protocol):
    """Keeps its number of calls, or its rate, going until the time is over.

    As every client, it has no more calls open than the server allows; the others wait here.
    """

    def __init__(self, orders: Orders, ends_at: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._orders, self._ends_at = orders, ends_at
        self._due = random.random()  # not all connections at the same moment
        self._headers = _headers(orders)
        self._bodies = [bytes.fromhex(body) for body in orders.bodies]
        self._received = bytearray()
        self._unrefilled = 0
        self._next_stream = 1
        self._waiting: deque[float] = deque()
        self._most_open = 100  # until the server has said how many
        self._open: dict[int, float] = {}
        self._sizes: dict[int, int] = {}
        self.latencies: list[float] = []
        self.errors: Counter[str] = Counter()
        self.bytes = 0
        self.done: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        settings = struct.pack(">HIHI", _HEADER_TABLE_SIZE, 0, _INITIAL_WINDOW_SIZE, _WINDOW)
        opening = _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, (_WINDOW - 65535).to_bytes(4))
        transport.write(_PREFACE + opening)
        if self._orders.rate:
            self._keep_pace(time.perf_counter())
        else:
            self._waiting.extend([time.perf_counter()] * self._orders.calls_at_once)
            transport.write(self._calls())

    def _keep_pace(self, last: float) -> None:
        if self._transport.is_closing():
            return
        now = time.perf_counter()
        self._due += (now - last) * self._orders.rate / self._orders.connections
        self._waiting.extend([now] * int(self._due))
        self._due %= 1
        self._transport.write(self._calls())
        if now < self._ends_at:
            self._loop.call_later(_TICK, self._keep_pace, now)
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
        """The frames of the calls that wait and may be made; those that have waited too long are given up."""
        calls, now = [], time.perf_counter()
        while self._waiting and len(self._open) < self._most_open:
            began = self._waiting.popleft()
            if (left := self._orders.deadline_s - (now - began)) > 0:
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
        received, answers = self._received, []
        received += data
        at = 0
        while len(received) - at >= 9:
            size = int.from_bytes(received[at : at + 3])
            if len(received) - at < 9 + size:
                break
            kind, flags = received[at + 3], received[at + 4]
            stream = int.from_bytes(received[at + 5 : at + 9])
            if kind == _DATA:
                self._sizes[stream] += size
                self._unrefilled += size
            elif kind == _PING and not flags & _ACK:
                answers.append(_frame(_PING, _ACK, 0, bytes(received[at + 9 : at + 9 + size])))
            elif kind == _SETTINGS and not flags & _ACK:
                settings = dict(struct.iter_unpack(">HI", received[at + 9 : at + 9 + size]))
                self._most_open = settings.get(_MAX_CONCURRENT_STREAMS, self._most_open)
                answers.append(_frame(_SETTINGS, _ACK, 0))
            elif kind == _GOAWAY:
                self._transport.close()
            if ((kind in (_DATA, _HEADERS) and flags & _END_STREAM) or kind == _RST_STREAM) and stream in self._open:
                self._ended(stream, kind, received[at + 9 : at + 9 + size])
            at += 9 + size
        del received[:at]
        if self._unrefilled > _REFILL:
            answers.append(_frame(_WINDOW_UPDATE, 0, 0, self._unrefilled.to_bytes(4)))
            self._unrefilled = 0
        self._transport.write(b"".join(answers) + self._calls())
        if time.perf_counter() >= self._ends_at:
            self._close_after_the_last()

    def _ended(self, stream: int, kind: int, payload: bytearray) -> None:
        now = time.perf_counter()
        began, size = self._open.pop(stream), self._sizes.pop(stream)
        is_late = now - began > self._orders.deadline_s
        if kind == _RST_STREAM:  # when the deadline has passed on either side, gRPC ends the stream without a status
            self.errors["late" if is_late else f"RST_STREAM {int.from_bytes(payload)}"] += 1
        elif size <= _PREFIX:  # an error has no message
            self.errors[_error(bytes(payload)) if kind == _HEADERS else "no status"] += 1
        elif is_late:
            self.errors["late"] += 1
        else:
            self.latencies.append(now - began)
            self.bytes += size - _PREFIX
        if now < self._ends_at and not self._orders.rate:
            self._waiting.append(now)


async def carried_out(orders: Orders) -> Result:
    """One client's calls, for as long as they are ordered."""
    loop = asyncio.get_running_loop()
    host, port = orders.address.rsplit(":", 1)
    began, cpu = time.perf_counter(), time.process_time()
    ends_at = began + orders.seconds
    made: list[tuple[Any, _Connection]] = [
        await loop.create_connection(lambda: _Connection(orders, ends_at), host, int(port)) for _ in range(orders.connections)
    ]
    connections = [connection for _, connection in made]
    await asyncio.wait_for(asyncio.gather(*(connection.done for connection in connections)), orders.seconds + 30)
    latencies = sorted(latency for connection in connections for latency in connection.latencies)
    calls = len(latencies)
    errors = sum((connection.errors for connection in connections), Counter[str]())
    return Result(
        calls=calls,
        failed=errors.total(),
        errors=dict(errors),
        seconds=time.perf_counter() - began,
        bytes_a_call=sum(connection.bytes for connection in connections) / max(calls, 1),
        p50_ms=latencies[calls // 2] * 1000 if calls else 0,
        p99_ms=latencies[calls * 99 // 100] * 1000 if calls else 0,
        client_us=(time.process_time() - cpu) / max(calls, 1) * 1e6,
    )


async def _run_all(orders: list[Orders]) -> list[Result]:
    return list(await asyncio.gather(*(carried_out(order) for order in orders)))


def main() -> None:
    """Carries out all orders at the same time."""
    orders = [Orders(**order) for order in json.load(sys.stdin)]
    json.dump([asdict(result) for result in uvloop.run(_run_all(orders))], sys.stdout)


if __name__ == "__main__":
    main()
