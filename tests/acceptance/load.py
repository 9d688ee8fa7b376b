"""A steady load of callers who retry nothing, while something is done to the deployment."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from service import pb
from tests.acceptance.deployment import Deployment

_LIST = pb.ListBackupsRequest(folder_id="f1")
_REST = "/managed-greenplum/v1/backups?folderId=f1"


class Outcomes(Counter[str]):
    """How often each status was answered, over both APIs, and the longest that an answer took, in seconds."""

    slowest = 0.0

    @property
    def codes(self) -> set[str]:
        return set(self)

    def note(self, outcome: str, began: float) -> None:
        self[outcome] += 1
        self.slowest = max(self.slowest, time.monotonic() - began)

    def __str__(self) -> str:
        answers = ", ".join(f"{count} {outcome}" for outcome, count in self.most_common())
        return f"{answers}; slowest {self.slowest * 1000:.0f} ms"


async def under_load(deployment: Deployment, disturb: Callable[[], Awaitable[None]]) -> Outcomes:
    """What callers are answered, each over a connection of its own through Envoy, until the disturbance is over."""
    outcomes = Outcomes()
    stop = asyncio.Event()

    async def call_grpc() -> None:
        async with deployment.channel() as channel:
            stub = pb.BackupServiceStub(channel)
            while not stop.is_set():
                began = time.monotonic()
                outcomes.note((await stub.List(_LIST, timeout=10).code()).name, began)
                await asyncio.sleep(0.005)

    async def call_rest() -> None:
        while not stop.is_set():
            began = time.monotonic()
            outcomes.note(f"HTTP {(await deployment.rest(_REST)).status}", began)
            await asyncio.sleep(0.02)

    callers = [asyncio.ensure_future(call_grpc()) for _ in range(8)]
    callers += [asyncio.ensure_future(call_rest()) for _ in range(2)]
    try:
        await disturb()
    finally:
        stop.set()
        await asyncio.gather(*callers)
    return outcomes
