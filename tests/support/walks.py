"""Clients that read a folder page by page, repeatedly, while its rows change.

They record histories, which history.py defines and checks.
"""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc

from service import pb
from service.postgres.errors import UNAVAILABLE
from tests.support.catalog import Backup, insert
from tests.support.eventually import eventually

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_NEWEST = datetime(2026, 11, 20, tzinfo=UTC)
_TIMES = 40  # few enough that many rows have the same time


class Folder:
    """A folder of the catalog, and the directory for the histories of its clients."""

    def __init__(self, histories: Path, *, seed: int) -> None:
        self._histories = histories
        self._seed = seed

    @contextlib.asynccontextmanager
    async def walked(self, name: str, count: int, open_channel: Callable[[], grpc.aio.Channel]) -> AsyncIterator[Counter[str]]:
        """Run `count` clients, each over its own connection, until the context is left; yield the counts of their statuses."""
        outcomes: Counter[str] = Counter()
        async with _run_until_exit(lambda stop: [self._walk(f"{name}-{number}", open_channel, outcomes, stop) for number in range(count)]):
            yield outcomes

    async def _walk(self, name: str, open_channel: Callable[[], grpc.aio.Channel], outcomes: Counter[str], stop: asyncio.Event) -> None:
        rng = random.Random(f"{self._seed} {name}")
        with (self._histories / f"{name}.jsonl").open("a", encoding="utf-8") as history:
            async with open_channel() as channel:
                stub = pb.BackupServiceStub(channel)
                for number in itertools.count(1):
                    token = ""
                    while not stop.is_set():
                        request = pb.ListBackupsRequest(folder_id="f1", page_size=rng.randint(1, 40), page_token=token)
                        began = time.monotonic()
                        try:
                            page = await stub.List(request, timeout=10)
                        except grpc.aio.AioRpcError as exc:
                            outcomes[exc.code().name] += 1
                            await asyncio.sleep(0.5)
                            continue
                        outcomes["OK"] += 1
                        times: dict[str, Any] = {"began": began, "ended": time.monotonic()}
                        rows = [(backup.created_at.ToMicroseconds(), backup.id) for backup in page.backups]
                        token = page.next_page_token
                        _record(history, walk=f"{name}-{number}", rows=rows, last=not token, **times)
                        await asyncio.sleep(rng.uniform(0, 0.4))
                        if not token:
                            break
                    if stop.is_set():
                        return

    @contextlib.asynccontextmanager
    async def written(self, url: str, *, rows: int) -> AsyncIterator[None]:
        """Insert `rows` rows, and replace a few of them repeatedly until the context is left."""
        writer = _Writer(url, self._histories / "writer.jsonl", random.Random(self._seed))
        await eventually(lambda: writer.step(adds=rows, removes=0), True, timeout_s=60, period_s=0.1)
        async with _run_until_exit(lambda stop: [writer.write(stop)]):
            yield


class _Writer:
    """The only writer of the folder's rows. It records each attempt and each acknowledgement."""

    def __init__(self, url: str, file: Path, rng: random.Random) -> None:
        self._url, self._file, self._rng = url, file, rng
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._present: list[Backup] = []
        self._numbers = itertools.count(1)

    async def write(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            count = self._rng.randint(1, 5)
            await self.step(adds=count, removes=count)
            await asyncio.sleep(0.1)
        if self._connection:
            await self._connection.close()

    async def step(self, *, adds: int, removes: int) -> bool:
        """Insert and remove rows. Return True if PostgreSQL acknowledged both. Otherwise the rows may exist or not."""
        added = [self._backup() for _ in range(adds)]
        self._rng.shuffle(self._present)
        removed, self._present = self._present[:removes], self._present[removes:]
        try:
            if self._connection is None:
                self._connection = await asyncpg.connect(self._url, timeout=3, command_timeout=5)
            self._record(added, "adding")
            await insert(self._connection, added)
            self._record(added, "added")
            self._present += added
            self._record(removed, "removing")
            await self._connection.execute("DELETE FROM backups WHERE id = ANY ($1)", [backup.id for backup in removed])
            self._record(removed, "removed")
            return True
        except (*UNAVAILABLE, asyncpg.ReadOnlySQLTransactionError):  # stopped, or no longer the primary
            if self._connection:
                self._connection.terminate()
            self._connection = None
            return False

    def _backup(self) -> Backup:
        number = next(self._numbers)
        created_at = _NEWEST + self._rng.randrange(_TIMES) * timedelta(minutes=1)
        return Backup(f"{self._rng.choice('aB-_~')}{number}", "f1", created_at, "c1", _NEWEST - timedelta(hours=1), 1)

    def _record(self, backups: list[Backup], event: str) -> None:
        at = time.monotonic()
        with self._file.open("a", encoding="utf-8") as history:
            for backup in backups:
                _record(history, row=((backup.created_at - _EPOCH) // _US, backup.id), **{event: at})


def _record(history: Any, **event: Any) -> None:
    history.write(json.dumps(event) + "\n")


@contextlib.asynccontextmanager
async def _run_until_exit(start: Callable[[asyncio.Event], list[Any]]) -> AsyncIterator[None]:
    """Run coroutines until the context is left. They must return after the event is set; their errors are raised."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for coroutine in start(stop):
            tasks.create_task(coroutine)
        try:
            yield
        finally:
            stop.set()
