"""A client that costs little: gRPC calls as HTTP/2 frames made beforehand, over a number of connections, each with calls at once.

h2load sends one and the same body all the time, and so asks for one hot id; the usual clients take more CPU than the servers measured
here. This one takes some 20 µs a call. It holds every answer to what it must be: a message, which no error has.

    python -m bench.load < orders.json > results.json
"""

import asyncio
import json
import random
import struct
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE = 1, 4
_WINDOW = 2**31 - 1
_REFILL = 1 << 20  # bytes received, before the connection's window is opened anew
_PREFIX = 5  # bytes before a message: whether it is compressed, and its length


@dataclass(frozen=True)
class Orders:
    """What to call, and how."""

    address: str
    path: str
    bodies: list[str]
    """Requests, in hexadecimal; drawn at random."""
    connections: int
    calls_at_once: int
    """Of each connection."""
    seconds: float


@dataclass(frozen=True)
class Result:
    """What came of it."""

    calls: int
    failed: int
    seconds: float
    bytes_a_call: float
    p50_ms: float
    p99_ms: float
    client_us: float
    """CPU of this client, a call."""


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _literal(name: bytes, value: str) -> bytes:
    return name + bytes((len(value),)) + value.encode()


def _headers(orders: Orders) -> bytes:
    """HPACK without its table: POST, http, :path, :authority, content-type, te, grpc-timeout."""
    return (
        b"\x83\x86" + _literal(b"\x04", orders.path) + _literal(b"\x01", orders.address) + _literal(b"\x0f\x10", "application/grpc")
        + _literal(b"\x00\x02te", "trailers") + _literal(b"\x00\x0cgrpc-timeout", "60S")
    )  # fmt: skip


class _Connection(asyncio.Protocol):
    """Keeps its number of calls going until the time is over."""

    def __init__(self, orders: Orders, ends_at: float) -> None:
        self._calls_at_once, self._ends_at = orders.calls_at_once, ends_at
        self._headers = _headers(orders)
        self._bodies = [bytes.fromhex(body) for body in orders.bodies]
        self._received = bytearray()
        self._unrefilled = 0
        self._next_stream = 1
        self._open: dict[int, float] = {}
        self._sizes: dict[int, int] = {}
        self.latencies: list[float] = []
        self.failed = 0
        self.bytes = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        settings = struct.pack(">HIHI", _HEADER_TABLE_SIZE, 0, _INITIAL_WINDOW_SIZE, _WINDOW)
        opening = _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, (_WINDOW - 65535).to_bytes(4))
        transport.write(_PREFACE + opening + b"".join(self._call() for _ in range(self._calls_at_once)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed += len(self._open)
        if not self.done.done():
            self.done.set_result(None)

    def _call(self) -> bytes:
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        body = random.choice(self._bodies)
        self._open[stream], self._sizes[stream] = time.perf_counter(), 0
        message = b"\0" + len(body).to_bytes(4) + body
        return _frame(_HEADERS, _END_HEADERS, stream, self._headers) + _frame(_DATA, _END_STREAM, stream, message)

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
                answers.append(_frame(_SETTINGS, _ACK, 0))
            elif kind == _GOAWAY:
                self._transport.close()
            if ((kind in (_DATA, _HEADERS) and flags & _END_STREAM) or kind == _RST_STREAM) and stream in self._open:
                answers.append(self._ended(stream))
            at += 9 + size
        del received[:at]
        if self._unrefilled > _REFILL:
            answers.append(_frame(_WINDOW_UPDATE, 0, 0, self._unrefilled.to_bytes(4)))
            self._unrefilled = 0
        self._transport.write(b"".join(answers))

    def _ended(self, stream: int) -> bytes:
        now = time.perf_counter()
        began, size = self._open.pop(stream), self._sizes.pop(stream)
        if size > _PREFIX:  # an error has no message
            self.latencies.append(now - began)
            self.bytes += size - _PREFIX
        else:
            self.failed += 1
        if now < self._ends_at:
            return self._call()
        if not self._open:
            self._transport.close()
        return b""


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
    return Result(
        calls=calls,
        failed=sum(connection.failed for connection in connections),
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
