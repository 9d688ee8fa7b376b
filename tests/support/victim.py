"""A client that is measured while others attack: calls one after the other from 127.0.0.3, over gRPC and REST."""

import asyncio
import contextlib
import ssl
import statistics
import time
from collections.abc import AsyncIterator

from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, RstStreamFrame

from service import pb
from service.address import Address
from tests.support.eventually import eventually
from tests.support.http2 import Connection, message

_SOURCE = "127.0.0.3"
_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_REST_LIST = "/managed-greenplum/v1/backups?folderId=f1&pageSize=1"
_REQUEST = message(pb.ListBackupsRequest(folder_id="f1", page_size=1).SerializeToString())
_CALLS_OF_A_CONNECTION = 20
_TIMEOUT_S = 10
_PAUSE_S = 0.01


class Victim:
    """Durations and failures of calls. Each connection is used for 20 of them, so that new connections are measured too."""

    def __init__(self, address: Address, token: str, tls: ssl.SSLContext | None, *, rest: bool) -> None:
        self._address, self._token, self._tls, self._rest = address, token, tls, rest
        self.durations: list[float] = []  # in seconds
        self.failures: list[str] = []

    async def call_forever(self) -> None:
        """Call until cancelled."""
        while True:
            began = time.perf_counter()
            try:
                async with Connection.to(self._address, source=_SOURCE, tls=self._tls) as connection:
                    await connection.settled()
                    for number in range(_CALLS_OF_A_CONNECTION):
                        async with asyncio.timeout(_TIMEOUT_S):
                            failure = await self._call(connection, rest=self._rest and number % 2 == 1)
                        self._note(began, failure)
                        await asyncio.sleep(_PAUSE_S)
                        began = time.perf_counter()
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as exc:
                self._note(began, type(exc).__name__)
                await asyncio.sleep(_PAUSE_S)

    def _note(self, began: float, failure: str) -> None:
        self.durations.append(time.perf_counter() - began)
        if failure:
            self.failures.append(failure)

    async def _call(self, connection: Connection, *, rest: bool) -> str:
        """Make one call, and return the error in its response, if any."""
        if rest:
            stream = await connection.get(_REST_LIST, self._token)
        else:
            stream = await connection.call(_LIST, _REQUEST, token=self._token)
        headers: dict[str, str] = {}
        size = 0
        while True:
            frame = await connection.frame()
            if isinstance(frame, GoAwayFrame):
                return f"GOAWAY {frame.error_code}"
            decoded = connection.headers(frame) if isinstance(frame, HeadersFrame) else {}  # each block changes the decoder's table
            if frame.stream_id != stream:
                continue
            if isinstance(frame, RstStreamFrame):
                return f"RST_STREAM {frame.error_code}"
            headers |= decoded
            size += len(frame.data) if isinstance(frame, DataFrame) else 0
            if "END_STREAM" in frame.flags:
                good = headers.get(":status") == "200" and (rest or headers.get("grpc-status") == "0") and size > 5
                return "" if good else f"HTTP {headers.get(':status')}, gRPC {headers.get('grpc-status')}, {size} bytes"

    @property
    def p99(self) -> float:
        """The 99th percentile of the durations, in seconds."""
        return statistics.quantiles(self.durations, n=100)[98] if len(self.durations) > 1 else float("inf")

    async def for_seconds(self, seconds: float, least: int = 20) -> None:
        """Wait for this time, and then until there have been at least `least` calls."""
        await asyncio.sleep(seconds)
        await eventually(lambda: len(self.durations), lambda calls: calls >= least, timeout_s=60, period_s=_PAUSE_S)

    def __str__(self) -> str:
        failed = f", {len(self.failures)} failed ({self.failures[0]})" if self.failures else ""
        return f"{len(self.durations)} calls{failed}, p99 {self.p99 * 1000:.0f} ms, slowest {max(self.durations, default=0) * 1000:.0f} ms"


@contextlib.asynccontextmanager
async def calling(address: Address, token: str, tls: ssl.SSLContext | None = None, *, rest: bool = True) -> AsyncIterator[Victim]:
    """Run the victim until the context is left."""
    victim = Victim(address, token, tls, rest=rest)
    task = asyncio.ensure_future(victim.call_forever())
    try:
        yield victim
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
