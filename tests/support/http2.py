"""HTTP/2 connection on the level of frames, which clients of gRPC do not give access to."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from service.address import Address

_HEADER_TABLE_SIZE = 1
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def message(data: bytes) -> bytes:
    """Return a length-prefixed gRPC message: a compression flag, the length, the bytes."""
    return b"\0" + len(data).to_bytes(4) + data


def request_headers(
    encoder: Encoder, path: str, token: str | None = None, timeout: str | None = None, more: dict[str, str] | None = None
) -> bytes:
    """Return the headers of a call, encoded with HPACK."""
    headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test"),
               ("te", "trailers"), ("content-type", "application/grpc")]  # fmt: skip
    headers += [("authorization", f"Bearer {token}")] if token else []
    headers += [("grpc-timeout", timeout)] if timeout else []
    headers += (more or {}).items()
    return bytes(encoder.encode(headers))


class Connection:
    """Connection that sends the given bytes and reads frames as they arrive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._encoder, self._decoder = Encoder(), Decoder()
        self._next_stream = 1
        self.peer_settings: dict[int, int] = {}
        """Settings that the server has sent."""
        self.send_window = 65_535
        """Initial window of the connection plus its increments, in bytes of DATA. Sent bytes are not subtracted."""

    @classmethod
    @asynccontextmanager
    async def to(
        cls, address: Address, settings: dict[int, int] | None = None, *, source: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> AsyncIterator["Connection"]:
        """Connect from the address `source` and send the preface and `settings`."""
        name = "localhost" if tls else None
        reader, writer = await asyncio.open_connection(address.host, address.port, local_addr=(source, 0), ssl=tls, server_hostname=name)
        try:
            connection = cls(reader, writer)
            writer.write(_PREFACE)
            connection.send(SettingsFrame(settings=settings or {}))
            yield connection
        finally:
            writer.close()

    def send(self, *frames: Frame) -> None:
        for frame in frames:
            self.send_bytes(frame.serialize())

    def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    async def call(
        self,
        path: str,
        body: bytes | None,
        *,
        end: bool = True,
        token: str | None = None,
        timeout: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:
        """Start a call and return its stream. Without a body or with `end=False` the call stays incomplete."""
        return await self.send_call(request_headers(self._encoder, path, token, timeout, headers), body, end=end)

    async def get(self, path: str, token: str) -> int:
        """Send a complete GET request; return its stream."""
        headers = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "test"), ("authorization", f"Bearer {token}")]
        return await self.send_call(self._encoder.encode(headers), None)

    async def send_call(self, headers: bytes, body: bytes | None, *, end: bool = True) -> int:
        """Start a call with headers that are encoded already; return its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        flags = ["END_HEADERS"] if body is not None or not end else ["END_HEADERS", "END_STREAM"]
        self.send(HeadersFrame(stream, data=headers, flags=flags))
        if body is not None:
            self.send(DataFrame(stream, data=body, flags=["END_STREAM"] if end else []))
        await self.drain()
        return stream

    async def settled(self) -> None:
        """Wait until the server has answered a PING, and so has sent its settings."""
        self.send(PingFrame(opaque_data=b"settled?"))
        while not isinstance(await self.frame(), PingFrame):
            pass

    async def frame(self) -> Frame:
        """Return the next frame, after answering SETTINGS and PING frames that precede it."""
        while True:
            head = await self._reader.readexactly(9)
            frame, length = Frame.parse_frame_header(memoryview(head))
            frame.parse_body(memoryview(await self._reader.readexactly(length)))
            if isinstance(frame, WindowUpdateFrame) and not frame.stream_id:
                self.send_window += frame.window_increment
            if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                self.peer_settings.update(frame.settings)
                self._encoder.header_table_size = min(self.peer_settings.get(_HEADER_TABLE_SIZE, 4096), 4096)
                self.send(SettingsFrame(flags=["ACK"]))
            elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
                self.send(PingFrame(opaque_data=frame.opaque_data, flags=["ACK"]))
            else:
                return frame

    def close(self) -> None:
        """Close the connection without a GOAWAY."""
        self._writer.close()

    def open_windows(self, size: int, *streams: int) -> None:
        """Let the peer send `size` more bytes on the connection and on each stream."""
        self.send(*(WindowUpdateFrame(stream, window_increment=size) for stream in (0, *streams)))

    async def closed(self, *, within: float) -> bool:
        """Return True if the peer closes the connection in time; data that arrives first is discarded."""
        with contextlib.suppress(ConnectionError):
            try:
                async with asyncio.timeout(within):
                    while await self._reader.read(65536):
                        pass
            except TimeoutError:
                return False
        return True

    async def frames_of(self, stream: int) -> list[Frame]:
        """Return the frames of one stream, up to its last."""
        frames: list[Frame] = []
        while not frames or not (isinstance(frames[-1], RstStreamFrame) or "END_STREAM" in frames[-1].flags):
            frame = await self.frame()
            assert not isinstance(frame, GoAwayFrame)
            if frame.stream_id == stream:
                frames.append(frame)
        return frames

    def headers(self, frame: Any) -> dict[str, str]:
        return {str(key): str(value) for key, value in self._decoder.decode(frame.data)}
