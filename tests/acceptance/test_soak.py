"""Faults at random, for as long as it takes.

Mitigations: all of those of the single faults, together.
"""

import asyncio
import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from service import pb
from service.backup import Backup
from service.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles, migrate
from service.settings import Address
from tests.acceptance.bars import Figure
from tests.acceptance.deployment import Deployment, ReplicaProcess, deployed
from tests.acceptance.load import Outcomes
from tests.api.http2 import Connection
from tests.conftest import Sql, insert

_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_DOCUMENTED = {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED", "HTTP 200", "HTTP 503", "HTTP 504"}
_LONGEST_S = 16  # of which Envoy allows fifteen to a call over REST, which has no deadline of its own
_FIRST = datetime(2026, 1, 1, tzinfo=UTC)
_BACKUPS = [Backup(f"b{number:03}", "f1", _FIRST + timedelta(hours=number), "c1", _FIRST, number) for number in range(250)]
_PAGES = [[backup.id for backup in _BACKUPS[::-1]][start : start + 100] for start in (0, 100, 200)]

Fault = Callable[[], Awaitable[None]]


class Faults:
    """What may happen to a deployment."""

    def __init__(self, deployment: Deployment, postgres: EmbeddedPostgres, chosen: random.Random) -> None:
        self._deployment, self._postgres, self._chosen = deployment, postgres, chosen

    def all(self) -> list[Fault]:
        return [
            self.replica_stopped, self.replica_killed, self.backends_killed, self.table_locked, self.certificate_renewed, self.half_done,
            self.postgres_stopped,
        ]  # fmt: skip

    async def replica_stopped(self) -> None:
        await self._chosen.choice(self._deployment.replicas).restart(signal.SIGTERM)

    async def replica_killed(self) -> None:
        await self._chosen.choice(self._deployment.replicas).restart(signal.SIGKILL)

    async def backends_killed(self) -> None:
        async with _connected(self._postgres) as sql:
            await sql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", Roles().service)

    async def table_locked(self) -> None:
        async with _connected(self._postgres) as sql, sql.transaction():
            await sql.execute("LOCK TABLE backups IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(self._chosen.uniform(0.1, 1))

    async def certificate_renewed(self) -> None:
        self._deployment.certificate.move(self._deployment.authority.pair("renewed"))

    async def half_done(self) -> None:
        async with Connection.to(Address("127.0.0.1", self._deployment.port)) as connection:
            for _ in range(50):
                await connection.call(_LIST, None)
            await asyncio.sleep(0.2)

    async def postgres_stopped(self) -> None:
        await asyncio.to_thread(self._postgres._run, "pg_ctl", "stop", "--mode=immediate", "-D", self._postgres._data)
        await asyncio.to_thread(self._postgres._start)


@contextlib.asynccontextmanager
async def _connected(postgres: EmbeddedPostgres) -> AsyncIterator[Sql]:
    connection = await asyncpg.connect(postgres.url("postgres"))
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture(name="soaked_postgres")
async def _soaked_postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A PostgreSQL of its own, which is stopped too, with the catalog."""
    with tempfile.TemporaryDirectory(prefix="backups-soak-", dir="/tmp") as folder:
        postgres = EmbeddedPostgres(Path(folder, "postgres"), settings={"shared_buffers": "128MB"})
        with postgres.running():
            async with _connected(postgres) as sql:
                await sql.execute(f"CREATE ROLE {Roles().service} LOGIN")
                await asyncio.to_thread(migrate, postgres.url("postgres"), roles=Roles())
                await insert(sql, _BACKUPS)
            yield postgres
        postgres.remove()


async def _walk_for_ever(deployment: Deployment, outcomes: Outcomes) -> None:
    """Page after page, each of which has to be right."""
    lasting = deployment.issuer.token("main", exp=int(time.time()) + 86_400)
    async with deployment.channel(lasting) as channel:
        stub = pb.BackupServiceStub(channel)
        number, token = 0, ""
        while True:
            began = time.monotonic()
            call: Any = stub.List(pb.ListBackupsRequest(folder_id="f1", page_token=token), timeout=10)
            code = await call.code()
            outcomes.note(code.name, began)
            if code.name == "OK":
                page = await call
                assert [backup.id for backup in page.backups] == _PAGES[number]
                number, token = (number + 1) % 3, page.next_page_token
            await asyncio.sleep(0.01)


async def _rest_for_ever(deployment: Deployment, outcomes: Outcomes) -> None:
    while True:
        began = time.monotonic()
        reply = await deployment.rest("/managed-greenplum/v1/backups?folderId=f1")
        outcomes.note(f"HTTP {reply.status}", began)
        if reply.status == 200:
            assert [backup["id"] for backup in reply.body["backups"]] == _PAGES[0]
        await asyncio.sleep(0.02)


def _used(deployment: Deployment) -> tuple[int, int]:
    """Memory in MiB, and descriptors, of the replica that uses most."""
    processes = [psutil.Process(replica.pid) for replica in deployment.replicas if isinstance(replica, ReplicaProcess)]
    return max(process.memory_info().rss >> 20 for process in processes), max(process.num_fds() for process in processes)


@pytest.mark.bar(16, "faults at random from a seed, under load by gRPC and REST")
async def test_soak(soaked_postgres: EmbeddedPostgres, *, long: bool, figure: Figure) -> None:
    """Every answer is right or a documented error, and afterwards all is as before; SEED repeats a run, MINUTES says how long it is."""
    seed = int(os.environ.get("SEED", random.randrange(2**32)))
    minutes = float(os.environ.get("MINUTES", 60 if long else 1 / 3))
    chosen = random.Random(seed)
    print(f"SEED={seed}")
    outcomes, happened = Outcomes(), 0
    url = soaked_postgres.url("postgres", user=Roles().service)
    async with deployed(url, replicas=3, BACKUPS_DRAIN_DELAY="2") as deployment:
        faults = Faults(deployment, soaked_postgres, chosen)
        load = [asyncio.ensure_future(_walk_for_ever(deployment, outcomes)) for _ in range(6)]
        load.append(asyncio.ensure_future(_rest_for_ever(deployment, outcomes)))
        try:
            await asyncio.sleep(1)
            before = _used(deployment)
            until = time.monotonic() + minutes * 60
            while time.monotonic() < until:
                await chosen.choice(faults.all())()
                happened += 1
                await asyncio.sleep(chosen.uniform(0, 1))
                for each in load:
                    assert not each.done(), each.exception()
            await deployment.settled()
            after = _used(deployment)
        finally:
            for each in load:
                each.cancel()
            await asyncio.gather(*load, return_exceptions=True)
    used = f"memory {before[0]} to {after[0]} MiB, descriptors {before[1]} to {after[1]}"
    figure(f"SEED={seed}: {happened} faults in {minutes:.1f} minutes; {outcomes}; {used}")
    assert outcomes.codes <= _DOCUMENTED
    assert outcomes["OK"] > 100
    assert outcomes.slowest < _LONGEST_S
    assert after[0] < before[0] + 50
    assert after[1] < before[1] + 50
