"""Attacks on a server, in a separate process so that they do not delay the client that is measured.

`python -m tests.support.attacks` reads an `Order` in JSON from standard input. It prints a line when the attack is in place, continues
until standard input closes, and then prints its counts in JSON. All connections come from 127.0.0.2.
"""

import asyncio
import base64
import contextlib
import functools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import uvloop
from hpack import Encoder, NeverIndexedHeaderTuple
from hyperframe.frame import DataFrame, Frame, PingFrame, RstStreamFrame, WindowUpdateFrame

from service import pb
from service.address import Address
from tests.support.http2 import Connection, message
from tests.support.repository import ROOT

_SOURCE = "127.0.0.2"
_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_WATCH = "/grpc.health.v1.Health/Watch"
_REST_LIST = "/managed-greenplum/v1/backups?folderId=f1&pageSize=1000"
_PAGE = message(pb.ListBackupsRequest(folder_id="f1", page_size=1000).SerializeToString())

_INITIAL_WINDOW_SIZE = 4
_DEFAULT_WINDOW = 65_535
_CONNECTIONS, _STREAMS = 20, 100  # 2,000 calls, within Envoy's limit of streams of a connection
_BODY = 4 << 20
_FRAME = 16_384
_WIRE = 1_000_000  # bytes a second
_REPLACE_EVERY_S = 5
_LONGEST_S = 900.0
_ERRORS = (OSError, asyncio.IncompleteReadError, ValueError)


class Order(NamedTuple):
    """An attack, its target, and the token of attacks by a client that has one."""

    attack: str
    port: int
    token: str = ""

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)


class Run:
    """Counts of an attack, and the event that it is in place."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.counts: Counter[str] = Counter()
        self.in_place = asyncio.Event()

    def connect(self, settings: dict[int, int] | None = None) -> contextlib.AbstractAsyncContextManager[Connection]:
        self.counts["connections"] += 1
        return Connection.to(self.order.address, settings, source=_SOURCE)


def _headers(path: str, *, method: str = "POST", token: str = "", **more: str) -> bytes:
    """Return headers as HPACK that does not depend on the connection's table, so that a block can be sent again."""
    pairs = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "test")]
    pairs += [("te", "trailers"), ("content-type", "application/grpc")] if method == "POST" else []
    pairs += [("authorization", f"Bearer {token}")] if token else []
    pairs += [(key.replace("_", "-"), value) for key, value in more.items()]
    return bytes(Encoder().encode([NeverIndexedHeaderTuple(*pair) for pair in pairs]))


def _is_end(frame: Frame) -> bool:
    return isinstance(frame, RstStreamFrame) or "END_STREAM" in frame.flags


async def _hold(
    run: Run, headers: bytes, body: bytes | None, *, end: bool, streams: int = _STREAMS, settings: dict[int, int] | None = None
) -> None:
    """Keep calls open on one connection. Calls that have ended are replaced every 5 s, and a closed connection is opened again."""
    while True:
        with contextlib.suppress(*_ERRORS):
            async with run.connect(settings) as connection:
                await _hold_once(run, connection, functools.partial(connection.send_call, headers, body, end=end), streams)
        run.counts["closed"] += 1
        await asyncio.sleep(0.5)


async def _hold_once(run: Run, connection: Connection, send_call: Callable[[], Awaitable[object]], streams: int) -> None:
    """Keep calls open until the connection is closed."""
    ended = streams

    async def replace() -> None:
        nonlocal ended
        while True:
            count, ended = ended, 0
            for _ in range(count):
                await send_call()
            run.counts["calls"] += count
            connection.send(PingFrame(opaque_data=b"in place"))
            await asyncio.sleep(_REPLACE_EVERY_S)

    async with asyncio.TaskGroup() as tasks:
        replacing = tasks.create_task(replace())
        try:
            while True:
                frame = await connection.frame()
                ended += _is_end(frame)
                run.counts["ended"] += _is_end(frame)
                if isinstance(frame, PingFrame):
                    run.in_place.set()
        except _ERRORS:
            replacing.cancel()


async def _many(hold: Callable[[], Awaitable[None]], connections: int = _CONNECTIONS) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(_as_coroutine(hold))


async def _as_coroutine(hold: Callable[[], Awaitable[None]]) -> None:
    await hold()


async def _half_sent_calls(run: Run) -> None:
    """Hold 2,000 calls whose message is never sent."""
    headers = _headers(_LIST)
    await _many(lambda: _hold(run, headers, None, end=False))


async def _half_sent_messages(run: Run) -> None:
    """Hold 2,000 calls whose message stays incomplete."""
    headers = _headers(_LIST)
    await _many(lambda: _hold(run, headers, _PAGE[:-1], end=False))


async def _half_sent_rest_calls(run: Run) -> None:
    """Hold 2,000 REST calls over HTTP/2 that are never complete."""
    headers = _headers(_REST_LIST, method="GET")
    await _many(lambda: _hold(run, headers, None, end=False))


async def _watches(run: Run) -> None:
    """Hold 2,000 streams of `Health/Watch`."""
    headers = _headers(_WATCH)
    await _many(lambda: _hold(run, headers, message(b""), end=True))


async def _unread_responses(run: Run) -> None:
    """Request 2,000 responses of 1,000 backups with a token, and do not read them."""
    headers = _headers(_LIST, token=run.order.token)
    await _many(lambda: _hold(run, headers, _PAGE, end=True, settings={_INITIAL_WINDOW_SIZE: 0}))


async def _unread_rest_responses(run: Run) -> None:
    """Request the same responses over REST, and do not read them."""
    headers = _headers(_REST_LIST, method="GET", token=run.order.token)
    await _many(lambda: _hold(run, headers, None, end=True, settings={_INITIAL_WINDOW_SIZE: 0}))


async def _idle(run: Run, data: bytes) -> None:
    """Keep one connection open that sends `data` and no more."""
    while True:
        with contextlib.suppress(*_ERRORS):
            run.counts["connections"] += 1
            reader, writer = await asyncio.open_connection(*run.order.address, local_addr=(_SOURCE, 0))
            writer.write(data)
            run.counts["open"] += 1
            if run.counts["open"] >= 900:
                run.in_place.set()
            try:
                while await reader.read(65_536):
                    pass
            finally:
                run.counts["open"] -= 1
                writer.close()
        run.in_place.set()  # connections are refused
        await asyncio.sleep(0.5)


async def _idle_connections(run: Run) -> None:
    """Hold 1,000 connections that send nothing."""
    await _many(lambda: _idle(run, b""), 1000)


async def _half_sent_http1(run: Run) -> None:
    """Hold 1,000 REST requests over HTTP/1.1 whose headers never end."""
    await _many(lambda: _idle(run, f"GET {_REST_LIST} HTTP/1.1\r\nHost: test\r\n".encode()), 1000)


async def _half_sent_http1_bodies(run: Run) -> None:
    """Hold 240 REST requests over HTTP/1.1 with half a body of 4 MiB."""
    head = f"POST {_LIST} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {_BODY}\r\n\r\n"
    await _many(lambda: _idle(run, head.encode() + bytes(_BODY // 2)), 240)


class _Bodies:
    """Bodies of 4 MiB without their last byte, sent on one connection as fast as flow control allows."""

    def __init__(self, run: Run, connection: Connection, start: bytes) -> None:
        self._run, self._connection, self._start = run, connection, start
        self._streams: dict[int, list[int]] = {}  # bytes left, and window, of each stream

    async def open(self, headers: bytes, count: int) -> None:
        await self._connection.settled()
        window = self._connection.peer_settings.get(_INITIAL_WINDOW_SIZE, _DEFAULT_WINDOW)
        for _ in range(count):
            stream = await self._connection.send_call(headers, self._start, end=False)
            self._connection.send_window -= len(self._start)
            self._streams[stream] = [_BODY - len(self._start) - 1, window - len(self._start)]
        self._run.counts["calls"] += count

    async def send(self) -> None:
        """Send until the windows are used up, and again as they open, until the connection closes."""
        while True:
            for stream, (left, window) in self._streams.items():
                size = min(left, window, self._connection.send_window, _FRAME)
                if size > 0:
                    self._connection.send(DataFrame(stream, data=bytes(size)))
                    self._streams[stream] = [left - size, window - size]
                    self._connection.send_window -= size
                    self._run.counts["bytes"] += size
            await self._connection.drain()
            self._take(await self._connection.frame())

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, WindowUpdateFrame) and frame.stream_id in self._streams:
            self._streams[frame.stream_id][1] += frame.window_increment
        elif _is_end(frame) and frame.stream_id in self._streams:
            del self._streams[frame.stream_id]
            self._run.counts["ended"] += 1


async def _send_bodies(run: Run, headers: bytes, start: bytes) -> None:
    while True:
        with contextlib.suppress(*_ERRORS):
            async with run.connect() as connection:
                bodies = _Bodies(run, connection, start)
                await bodies.open(headers, 80)
                run.in_place.set()
                await bodies.send()
        run.counts["closed"] += 1
        await asyncio.sleep(0.5)


async def _half_sent_bodies(run: Run) -> None:
    """Hold 240 calls with an incomplete message of 4 MiB."""
    headers = _headers(_LIST)
    await _many(lambda: _send_bodies(run, headers, b"\0" + (_BODY - 5).to_bytes(4)), 3)


async def _half_sent_rest_bodies(run: Run) -> None:
    """Hold 240 REST calls over HTTP/2 with an incomplete body of 4 MiB."""
    headers = _headers(_REST_LIST, method="GET", content_type="application/json")
    await _many(lambda: _send_bodies(run, headers, b"{"), 3)


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _junk(kid: str = "main") -> str:
    """Return a token of 1 to 15 kB: well-formed with a wrong signature, with a huge header, or no token at all."""
    size = random.randrange(700, 11_000)
    header = {"alg": "RS256", "kid": kid, "typ": "JWT"}
    shape = random.randrange(4)
    if shape == 3:
        return random.choice("ab") * size
    if shape == 2:
        header["x"] = "y" * size
        size = 100
    claims = json.dumps({"sub": "x" * size, "exp": random.randrange(10**9, 10**10)}).encode()
    return ".".join(map(_segment, (json.dumps(header).encode(), claims, os.urandom(256))))


async def _send_junk(run: Run, block: Callable[[], bytes], bytes_per_second: float) -> None:
    """Send complete calls at a constant rate, and reconnect when the connection closes."""
    clock = asyncio.get_running_loop().time
    while True:
        with contextlib.suppress(*_ERRORS):
            async with run.connect() as connection:
                await connection.settled()
                reading = asyncio.ensure_future(_read(run, connection))
                began, sent = clock(), 0
                try:
                    while not reading.done():
                        headers = block()
                        await connection.send_call(headers, None)
                        run.counts["calls"] += 1
                        run.counts["bytes"] += len(headers)
                        sent += len(headers) + 9
                        run.in_place.set()
                        await asyncio.sleep(max(0.0, began + sent / bytes_per_second - clock()))
                finally:
                    reading.cancel()
        run.counts["closed"] += 1
        await asyncio.sleep(0.1)


async def _read(run: Run, connection: Connection) -> None:
    """Read until the connection closes, and count the calls that end."""
    with contextlib.suppress(*_ERRORS):
        while True:
            run.counts["ended"] += _is_end(await connection.frame())


async def _junk_tokens(run: Run) -> None:
    """Send calls with different junk tokens of 1 to 15 kB, at 1 MB/s."""
    await _many(lambda: _send_junk(run, lambda: _headers(_LIST, token=_junk()), _WIRE / 4), 4)


async def _junk_rest_tokens(run: Run) -> None:
    """Send REST calls with different junk tokens of 1 to 15 kB, at 1 MB/s."""
    await _many(lambda: _send_junk(run, lambda: _headers(_REST_LIST, method="GET", token=_junk()), _WIRE / 4), 4)


ATTACKS: dict[str, Callable[[Run], Awaitable[None]]] = {
    "half-sent calls": _half_sent_calls,
    "half-sent messages": _half_sent_messages,
    "half-sent REST calls": _half_sent_rest_calls,
    "watches": _watches,
    "idle connections": _idle_connections,
    "half-sent HTTP/1.1 headers": _half_sent_http1,
    "half-sent HTTP/1.1 bodies": _half_sent_http1_bodies,
    "half-sent bodies": _half_sent_bodies,
    "half-sent REST bodies": _half_sent_rest_bodies,
    "junk tokens": _junk_tokens,
    "junk REST tokens": _junk_rest_tokens,
    "unread responses": _unread_responses,
    "unread REST responses": _unread_rest_responses,
}


async def _attack(order: Order) -> Counter[str]:
    """Attack until standard input closes; return the counts."""
    run = Run(order)
    attacking = asyncio.ensure_future(ATTACKS[order.attack](run))
    in_place = asyncio.ensure_future(run.in_place.wait())
    await asyncio.wait((attacking, in_place), timeout=30, return_when=asyncio.FIRST_COMPLETED)
    print("in place", dict(run.counts), flush=True)
    over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait((attacking, over), timeout=_LONGEST_S, return_when=asyncio.FIRST_COMPLETED)
    if attacking.done():
        attacking.result()
    attacking.cancel()
    return run.counts


@contextlib.asynccontextmanager
async def attacking(attack: str, port: int, token: str = "") -> AsyncIterator[Counter[str]]:
    """Attack a port of 127.0.0.1 from a separate process; the counts are complete when the context is left."""
    counts: Counter[str] = Counter()
    command = [sys.executable, "-m", "tests.support.attacks"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(Order(attack, port, token)).encode() + b"\n")
            process.stdin.flush()
            line = await asyncio.to_thread(process.stdout.readline)
            assert line.startswith(b"in place"), line
            yield counts
            done, _ = await asyncio.to_thread(process.communicate)
            counts.update(json.loads(done))
        finally:
            process.kill()


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_attack(Order(*json.loads(sys.stdin.readline()))))))
    sys.stdout.flush()
    os._exit(0)  # a thread may still read standard input
