"""Random faults at the same time, for the given duration.

The mitigations are those of the tests of single faults.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import grpc
import psutil
import pytest

from service import pb
from service.address import Address
from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.errors import UNAVAILABLE
from service.postgres.migration import Roles
from tests.support.catalog import Backup, Sql, insert
from tests.support.deployment import Deployment, ReplicaProcess, deployed
from tests.support.eventually import eventually
from tests.support.guarantees import Measure
from tests.support.hostile_clients import Flood
from tests.support.http2 import Connection
from tests.support.importing import FIRST_DAY, Importing, listing
from tests.support.load import INCOMPLETE, Outcomes, status
from tests.support.proxy import Proxy, proxied
from tests.support.tokens import Issuer

_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_DOCUMENTED = {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", INCOMPLETE, "HTTP 200", "HTTP 429", "HTTP 503", "HTTP 504"}
_LONGEST_S = 16  # Envoy limits REST calls, which have no deadline, to 15 s
_FIRST = datetime(2026, 1, 1, tzinfo=UTC)
_BACKUPS = [Backup(f"b{number:03}", "f1", _FIRST + timedelta(hours=number), "walked", _FIRST, number) for number in range(250)]
_PAGES = [[backup.id for backup in _BACKUPS[::-1]][start : start + 100] for start in (0, 100, 200)]
_LISTED = (dict.fromkeys(range(300), 1), dict.fromkeys(range(100, 400), 2))
"""The listings that are imported, as the size of the backup of each day."""

Fault = Callable[[random.Random], Awaitable[None]]


class Target(NamedTuple):
    """A deployment whose replicas and imports reach PostgreSQL through a proxy."""

    deployment: Deployment
    postgres: EmbeddedPostgres
    proxy: Proxy
    jwks: Path
    import_log: Path
    import_url: str


class Faults:
    """Faults in four groups, which run at the same time; a group injects one fault after the other."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._deployment, self._postgres, self._proxy = target.deployment, target.postgres, target.proxy
        self._imported: dict[int, int] = {}
        self.imports: Counter[str] = Counter()
        """Counts of the states of the catalog after each import: new, old or unchanged."""

    def groups(self) -> list[list[Fault]]:
        return [
            [self.replica_stopped, self.replica_killed, self.certificate_renewed, self.keys_rotated],
            [self.backends_killed, self.table_locked, self.postgres_stopped, self.database_out_of_reach],
            [self.incomplete_calls, self.flood, self.burst, self.cancelled, self.bad_tokens],
            [self.import_killed],
        ]

    async def replica_stopped(self, rng: random.Random) -> None:
        await rng.choice(self._deployment.replicas[1:]).restart(signal.SIGTERM)

    async def replica_killed(self, rng: random.Random) -> None:
        await rng.choice(self._deployment.replicas[1:]).restart(signal.SIGKILL)

    async def certificate_renewed(self, _: random.Random) -> None:
        self._deployment.certificate.move(self._deployment.authority.pair("renewed"))

    async def keys_rotated(self, rng: random.Random) -> None:
        """Write the file in two parts, so that it is incomplete for a while."""
        keys = self._deployment.issuer.jwks(*rng.choice([("main",), ("main", "other")]))
        self._target.jwks.write_bytes(keys[: len(keys) // 2])
        await asyncio.sleep(rng.uniform(0, 1))
        self._target.jwks.write_bytes(keys)

    async def backends_killed(self, _: random.Random) -> None:
        async with _connected(self._postgres) as sql:
            await sql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", Roles().service)

    async def table_locked(self, rng: random.Random) -> None:
        async with _connected(self._postgres) as sql, sql.transaction():
            await sql.execute("LOCK TABLE backups IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(rng.uniform(0.1, 1))

    async def postgres_stopped(self, _: random.Random) -> None:
        await asyncio.to_thread(self._postgres.crash)
        await asyncio.to_thread(self._postgres.start)

    async def database_out_of_reach(self, rng: random.Random) -> None:
        self._proxy.blackhole()
        await asyncio.sleep(rng.uniform(0.1, 3))
        self._proxy.restore()

    async def incomplete_calls(self, _: random.Random) -> None:
        async with Connection.to(Address("127.0.0.1", self._deployment.port)) as connection:
            for _count in range(50):
                await connection.call(_LIST, None)
            await asyncio.sleep(0.2)

    async def flood(self, rng: random.Random) -> None:
        await Flood(rng.choice(Flood.KINDS), 5000).send(self._deployment.port)

    async def burst(self, _: random.Random) -> None:
        responses = await self._calls(500)
        assert responses.keys() <= _DOCUMENTED, responses

    async def cancelled(self, rng: random.Random) -> None:
        responses = await self._calls(200, cancelled_after=rng.uniform(0, 0.2))
        assert responses.keys() <= _DOCUMENTED | {"CANCELLED"}, responses

    async def bad_tokens(self, _: random.Random) -> None:
        responses = await self._calls(50, token=self._deployment.issuer.token("main", named="unknown"))
        assert responses.keys() <= _DOCUMENTED - {"OK"} | {"UNAUTHENTICATED"}, responses

    async def _calls(self, count: int, *, token: str | None = None, cancelled_after: float | None = None) -> dict[str, str]:
        """Make calls at the same time; return their statuses, each with the details of a call."""
        async with self._deployment.channel(token) as channel:
            stub = pb.BackupServiceStub(channel)
            calls: list[Any] = [stub.List(pb.ListBackupsRequest(folder_id="f1"), timeout=10) for _ in range(count)]
            if cancelled_after is not None:
                await asyncio.sleep(cancelled_after)
                for call in calls:
                    call.cancel()
            return {await status(call): await call.details() for call in calls}

    async def import_killed(self, rng: random.Random) -> None:
        """Kill an import after a random time, and check that the catalog equals the old or the new listing."""
        sizes = rng.choice(_LISTED)
        importing = Importing(self._target.import_url, self._target.import_log, "--prune", "--prune-any", folder="f2")
        await importing.write(listing(sizes))
        await asyncio.sleep(rng.uniform(0, 4))
        importing.kill()
        await importing.wait()
        found = await self._found()
        assert found in (self._imported, sizes)
        self.imports["new" if found != self._imported else "old" if found != sizes else "unchanged"] += 1
        self._imported = found

    async def _found(self) -> dict[int, int]:
        """Return the imported backups when PostgreSQL answers and the session of the import has ended."""

        async def read() -> tuple[int, dict[int, int]]:
            async with _connected(self._postgres) as sql:
                sessions = await sql.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usename = $1", Roles().imports)
                rows = await sql.fetch("SELECT created_at, size FROM backups WHERE folder_id = 'f2'")
                return sessions, {(row["created_at"] - FIRST_DAY).days: row["size"] for row in rows}

        _, found = await eventually(read, lambda response: response[0] == 0, timeout_s=60, period_s=0.05, retried=UNAVAILABLE)
        return found


@contextlib.asynccontextmanager
async def _connected(postgres: EmbeddedPostgres) -> AsyncIterator[Sql]:
    connection = await asyncpg.connect(postgres.url("postgres"))
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def _running(postgres: EmbeddedPostgres, folder: Path) -> AsyncIterator[Target]:
    """Run the deployment, with a proxy in front of PostgreSQL."""
    async with _connected(postgres) as sql:
        await insert(sql, _BACKUPS)
    issuer, jwks = Issuer("main", "other"), folder / "jwks.json"
    jwks.write_bytes(issuer.jwks("main"))
    async with proxied(postgres.sockets / ".s.PGSQL.5432") as proxy:
        urls = {role: f"postgresql://{role}@127.0.0.1:{proxy.port}/postgres" for role in Roles()}
        async with deployed(
            urls[Roles().service],
            replicas=3,
            issuer=issuer,
            BACKUPS_DRAIN_DELAY="2",
            BACKUPS_JWKS=str(jwks),
            BACKUPS_JWKS_REFRESH="1",
        ) as deployment:
            yield Target(deployment, postgres, proxy, jwks, folder / "import.log", urls[Roles().imports])


async def _walk(deployment: Deployment, outcomes: Outcomes, until: asyncio.Event, *, pause_s: float) -> None:
    """Read page after page, and check each one."""
    lasting = deployment.issuer.token("main", exp=int(time.time()) + 86_400)
    async with deployment.channel(lasting) as channel:
        stub = pb.BackupServiceStub(channel)
        number, token = 0, ""
        while not until.is_set():
            began = time.monotonic()
            call: Any = stub.List(pb.ListBackupsRequest(folder_id="f1", page_token=token), timeout=10)
            name = await status(call)
            outcomes.record(name, began)
            if name == "OK":
                page = await call
                assert [backup.id for backup in page.backups] == _PAGES[number]
                number, token = (number + 1) % 3, page.next_page_token
            await asyncio.sleep(pause_s)


async def _call_rest(deployment: Deployment, outcomes: Outcomes, until: asyncio.Event, *, pause_s: float) -> None:
    """Read the first page over REST repeatedly, and check it."""
    while not until.is_set():
        began = time.monotonic()
        reply = await deployment.rest("/managed-greenplum/v1/backups?folderId=f1")
        outcomes.record(f"HTTP {reply.status}", began)
        if reply.status == 200:
            assert [backup["id"] for backup in reply.body["backups"]] == _PAGES[0]
        await asyncio.sleep(pause_s)


class Used(NamedTuple):
    """Memory (in MiB) and descriptors of the replica that is never restarted, and the memory of Envoy."""

    memory: int
    descriptors: int
    envoy_memory: int

    @classmethod
    async def by(cls, deployment: Deployment) -> "Used":
        """Measure the first replica and Envoy."""
        lasting = deployment.replicas[0]
        assert isinstance(lasting, ReplicaProcess)
        process = psutil.Process(lasting.pid)
        [allocated] = (await deployment.stats("server.memory_allocated")).values()
        return cls(process.memory_info().rss >> 20, process.num_fds(), allocated >> 20)


async def _inject(faults: list[Fault], rng: random.Random, injected: Counter[str], until: float) -> None:
    """Inject one fault after the other, with pauses, until a time of `time.monotonic()`."""
    while time.monotonic() < until:
        fault = rng.choice(faults)
        await fault(rng)
        injected[fault.__name__] += 1
        await asyncio.sleep(rng.uniform(0, 2))


async def _inject_all(faults: Faults, seed: int, injected: Counter[str], *, until: float) -> None:
    """Inject faults of all groups at the same time."""
    async with asyncio.TaskGroup() as groups:
        for number, group in enumerate(faults.groups()):
            groups.create_task(_inject(group, random.Random(f"{seed} {number}"), injected, until))


def _used(before: Used, after: Used) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {one} to {other}" for name, one, other in zip(Used._fields, before, after, strict=True))


def _check_used(before: Used, after: Used) -> None:
    assert after.memory < before.memory + 50
    assert after.descriptors < before.descriptors + 50
    assert after.envoy_memory < before.envoy_memory + 50


@contextlib.asynccontextmanager
async def _loaded(deployment: Deployment, outcomes: Outcomes, *, pause_s: float) -> AsyncIterator[None]:
    """Call by gRPC and REST until the block ends. A gRPC client pauses for `pause_s` after each call, a REST client twice as long."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as load:
        for _ in range(6):
            load.create_task(_walk(deployment, outcomes, over, pause_s=pause_s))
        load.create_task(_call_rest(deployment, outcomes, over, pause_s=2 * pause_s))
        yield
        over.set()


@pytest.mark.slow
@pytest.mark.guarantee(16, "random faults from a seed, up to four at the same time, under load by gRPC and REST")
async def test_soak(own_postgres: EmbeddedPostgres, tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """Every response is correct or a documented error, and afterwards no replica or Envoy has kept memory or descriptors.

    The environment variable SEED repeats a run, and MINUTES sets its duration.
    """
    # Keep gRPC's poller: stopping it with the last channel blocks the event loop while an operation of a channel is pending.
    grpc.aio.init_grpc_aio()
    seed = int(os.environ.get("SEED", random.randrange(2**32)))
    minutes = float(os.environ.get("MINUTES", 60 if long else 1 / 3))
    print(f"SEED={seed}")
    outcomes, injected = Outcomes(), Counter[str]()
    async with _running(own_postgres, tmp_path) as target:
        deployment = target.deployment
        async with _loaded(deployment, outcomes, pause_s=0.01 if long else 0.1):
            await asyncio.sleep(1)
            before = await Used.by(deployment)
            faults = Faults(target)
            await _inject_all(faults, seed, injected, until=time.monotonic() + minutes * 60)
            await deployment.settled()
            after = await Used.by(deployment)
    imports = ", ".join(f"{count} {state}" for state, count in faults.imports.most_common())
    measure(
        f"SEED={seed}: {injected.total()} faults of {len(injected)} kinds in {minutes:.1f} minutes; {outcomes}; imports: {imports}; "
        f"{_used(before, after)}"
    )
    assert not long or (len(injected) == sum(map(len, faults.groups())) and faults.imports["old"] and faults.imports["new"])
    assert outcomes.codes <= _DOCUMENTED
    assert outcomes["OK"] > 100
    assert outcomes.slowest < _LONGEST_S
    _check_used(before, after)
