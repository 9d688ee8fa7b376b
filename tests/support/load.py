"""A steady load of clients that do not retry, while a test injects faults into the deployment. Every response must be correct."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from grpc import StatusCode

from service import pb
from tests.support.deployment import Deployment

_LIST = pb.ListBackupsRequest(folder_id="f1")
_REST = "/managed-greenplum/v1/backups?folderId=f1"

INCOMPLETE = "INTERNAL, RST_STREAM"
"""Status of a response that broke off, for example because the replica was killed (docs/api.md)."""


async def status(call: Any) -> str:
    """Wait for a call to end and return the name of its status."""
    code, details = await call.code(), await call.details()
    return INCOMPLETE if code is StatusCode.INTERNAL and "RST_STREAM" in details else str(code.name)


class Outcomes(Counter[str]):
    """Counts of the statuses of both APIs, and the duration of the slowest call, in seconds."""

    slowest = 0.0

    @property
    def codes(self) -> set[str]:
        return set(self)

    def record(self, outcome: str, began: float) -> None:
        """Count a call that began at `began`, of `time.monotonic()`, and has just ended."""
        self[outcome] += 1
        self.slowest = max(self.slowest, time.monotonic() - began)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.most_common())
        return f"{counts}; slowest {self.slowest * 1000:.0f} ms"


async def under_load(deployment: Deployment, inject: Callable[[], Awaitable[None]], *, pause_s: float = 0.005) -> Outcomes:
    """Call both APIs through Envoy while `inject` runs; return the outcomes. Each client has its own connection.

    Args:
        pause_s: pause of a gRPC client after each call. A REST client pauses four times as long.

    Raises:
        AssertionError: a page differs from the one before the faults.
    """
    outcomes = Outcomes()
    stop = asyncio.Event()
    async with deployment.channel() as channel:
        expected = [backup.id for backup in (await pb.BackupServiceStub(channel).List(_LIST)).backups]
    async with asyncio.TaskGroup() as callers:
        for _ in range(8):
            callers.create_task(_call_grpc(deployment, outcomes, expected, stop, pause_s=pause_s))
        for _ in range(2):
            callers.create_task(_call_rest(deployment, outcomes, expected, stop, pause_s=4 * pause_s))
        try:
            await inject()
        finally:
            stop.set()
    return outcomes


async def _call_grpc(deployment: Deployment, outcomes: Outcomes, expected: list[str], stop: asyncio.Event, *, pause_s: float) -> None:
    async with deployment.channel() as channel:
        stub = pb.BackupServiceStub(channel)
        while not stop.is_set():
            began = time.monotonic()
            call: Any = stub.List(_LIST, timeout=10)
            code = await call.code()
            outcomes.record(code.name, began)
            assert code is not StatusCode.OK or [backup.id for backup in (await call).backups] == expected
            await asyncio.sleep(pause_s)


async def _call_rest(deployment: Deployment, outcomes: Outcomes, expected: list[str], stop: asyncio.Event, *, pause_s: float) -> None:
    while not stop.is_set():
        began = time.monotonic()
        reply = await deployment.rest(_REST)
        outcomes.record(f"HTTP {reply.status}", began)
        assert reply.status != 200 or [backup["id"] for backup in reply.body.get("backups", [])] == expected
        await asyncio.sleep(pause_s)
