"""A steady load of callers who retry nothing, while something is done to the deployment; what they are answered has to be right."""

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
    """What callers are answered, each over a connection of its own through Envoy, until the disturbance is over.

    Every page has to be the one that there was before.
    """
    outcomes = Outcomes()
    stop = asyncio.Event()
    async with deployment.channel() as channel:
        expected = [backup.id for backup in (await pb.BackupServiceStub(channel).List(_LIST)).backups]

    async def call_grpc() -> None:
        async with deployment.channel() as channel:
            stub = pb.BackupServiceStub(channel)
            while not stop.is_set():
                began = time.monotonic()
                call: Any = stub.List(_LIST, timeout=10)
                code = await call.code()
                outcomes.note(code.name, began)
                assert code is not StatusCode.OK or [backup.id for backup in (await call).backups] == expected
                await asyncio.sleep(0.005)

    async def call_rest() -> None:
        while not stop.is_set():
            began = time.monotonic()
            reply = await deployment.rest(_REST)
            outcomes.note(f"HTTP {reply.status}", began)
            assert reply.status != 200 or [backup["id"] for backup in reply.body.get("backups", [])] == expected
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as callers:
        for call in [call_grpc] * 8 + [call_rest] * 2:
            callers.create_task(call())
        try:
            await disturb()
        finally:
            stop.set()
    return outcomes
