"""PostgreSQL that stops, terminates sessions, or does not respond.

Mitigations:
- service/postgres/errors.py lists the errors of a lost connection.
- Connecting, acquiring and releasing a connection have timeouts, and no call waits for them longer than its deadline.
- Connections are opened when they are needed, so that no process needs a restart.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import grpc
import pytest
from grpc import StatusCode

from service import pb
from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles
from tests.support.catalog import AddBackups, Backup, Sql, insert
from tests.support.deployment import Replica, ReplicaProcess, deployed
from tests.support.eventually import eventually
from tests.support.guarantees import Measure
from tests.support.load import under_load
from tests.support.proxy import Proxy, proxied
from tests.support.server import StartServer

_LIST = pb.ListBackupsRequest(folder_id="f1")
_CALLS = 10_000
_TIME = datetime(2026, 11, 20, tzinfo=UTC)
_BACKENDS = f"FROM pg_stat_activity WHERE datname = $1 AND usename = '{Roles().service}'"
_CLEAN = {"OK", "UNAVAILABLE", "HTTP 200", "HTTP 503"}


@pytest.mark.guarantee(3, "PostgreSQL stopped (immediate shutdown) and started again, under load through Envoy")
async def test_postgres_is_stopped(own_postgres: EmbeddedPostgres, *, long: bool, measure: Measure) -> None:
    """While PostgreSQL is stopped calls fail only with UNAVAILABLE, and each replica answers correctly within 2 s after it is ready."""
    recovered: list[float] = []
    rounds = 5 if long else 1
    sql = await asyncpg.connect(own_postgres.url("postgres"))
    await insert(sql, [Backup(f"b{number}", "f1", _TIME, "c1", _TIME, number) for number in range(20)])
    await sql.close()
    async with deployed(own_postgres.url("postgres", user=Roles().service)) as deployment:

        async def stop_and_start() -> None:
            for _ in range(rounds):
                await asyncio.to_thread(own_postgres.crash)
                await asyncio.sleep(1)  # the fault itself: no PostgreSQL for this long
                await asyncio.to_thread(own_postgres.start)
                ready = time.monotonic()
                await asyncio.gather(*(_until_answered(replica, deployment.token()) for replica in deployment.replicas))
                recovered.append(time.monotonic() - ready)
                await deployment.settled()

        outcomes = await under_load(deployment, stop_and_start)
        for replica in deployment.replicas:
            replica.check_runs()
    measure(f"{outcomes}; answered again after {max(recovered):.2f} s at most")
    assert {"OK", "UNAVAILABLE"} <= outcomes.codes <= _CLEAN
    assert max(recovered) < 2


async def _until_answered(replica: Replica, token: str) -> None:
    """Call a replica directly, because Envoy would choose another one."""
    assert isinstance(replica, ReplicaProcess)
    metadata = [("authorization", f"Bearer {token}")]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}") as channel:
        stub = pb.BackupServiceStub(channel)
        await eventually(lambda: stub.List(_LIST, timeout=5, metadata=metadata).code(), StatusCode.OK, timeout_s=30)


@pytest.mark.guarantee(3, "every backend of PostgreSQL killed in a loop, under load through Envoy")
async def test_backends_are_killed(
    database_url: str, database_name: str, sql: Sql, add_backups: AddBackups, *, long: bool, measure: Measure
) -> None:
    """Calls whose backend is killed, in a query or between two queries, are OK or UNAVAILABLE."""
    await add_backups(20)
    rounds, killed = 200 if long else 40, 0

    async def kill() -> None:
        nonlocal killed
        for _ in range(rounds):
            killed += len(await sql.fetch(f"SELECT pg_terminate_backend(pid) {_BACKENDS}", database_name))
            await asyncio.sleep(0.05)

    async with deployed(database_url) as deployment:
        outcomes = await under_load(deployment, kill)
    measure(f"{killed} killed in {rounds} rounds: {outcomes}")
    assert killed >= rounds
    assert outcomes.codes <= _CLEAN
    assert outcomes["OK"] > 20


@pytest.fixture(name="proxy")
async def _proxy(postgres: EmbeddedPostgres) -> AsyncIterator[Proxy]:
    async with proxied(postgres.sockets / ".s.PGSQL.5432") as proxy:
        yield proxy


async def _call(stub: pb.BackupServiceStub, timeout: float | None) -> tuple[str, float]:
    """Return the status of a call, and its duration in seconds."""
    began = time.monotonic()
    code = await stub.List(_LIST, timeout=timeout).code()
    return code.name, time.monotonic() - began


@pytest.mark.guarantee(5, "a database that does not respond, during a query and while connecting")
@pytest.mark.parametrize("connected", [True, False])
async def test_black_hole(
    start_server: StartServer, proxy: Proxy, database_name: str, sql: Sql, *, connected: bool, long: bool, measure: Measure
) -> None:
    """Deadlines of clients and of the service hold to within 0.1 s while the database does not respond; afterwards the pool is complete."""
    url = f"postgresql://{Roles().service}@127.0.0.1:{proxy.port}/{database_name}"
    settings = {"pool_size": 4, "request_timeout": "1.5", "acquire_timeout": "5", "connect_timeout": "3"}
    async with start_server(database_url=url, **settings) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        stub = pb.BackupServiceStub(channel)
        if connected:
            await asyncio.gather(*(_call(stub, 5) for _ in range(8)))
        proxy.blackhole()
        calls = [_call(stub, 0.5) for _ in range(8)] + [_call(stub, None) for _ in range(8)]
        responses = await asyncio.gather(*calls)
        assert {code for code, _ in responses} == {"DEADLINE_EXCEEDED"}
        late = [seconds - (0.5 if index < 8 else 1.5) for index, (_, seconds) in enumerate(responses)]
        proxy.restore()
        began = time.monotonic()

        async def codes() -> set[str]:
            return {code for code, _ in await asyncio.gather(*(_call(stub, 5) for _ in range(4)))}

        await eventually(codes, {"OK"}, timeout_s=20)
        measure(f"late by {max(late) * 1000:.0f} ms at most, answered again after {time.monotonic() - began:.2f} s")
        assert -0.1 < min(late) < max(late) < (0.1 if long else 2)  # next to other tests, this process itself is late
        await _check_pool(stub, sql, database_name, size=4)


async def _check_pool(stub: pb.BackupServiceStub, sql: Sql, database_name: str, *, size: int) -> None:
    """Check that `size` calls have a connection at the same time, and that there is no other one but the reserved connection."""
    async with sql.transaction():
        await sql.execute("LOCK TABLE backups IN ACCESS EXCLUSIVE MODE")
        waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'backups'::regclass AND NOT granted"
        calls = []
        for number in range(1, size + 1):  # one after the other, so that each call has a query of its own
            calls.append(asyncio.ensure_future(_call(stub, 15)))
            await eventually(lambda: sql.fetchval(waiting), number.__le__, timeout_s=20)
    assert {code for code, _ in await asyncio.gather(*calls)} == {"OK"}
    await eventually(lambda: sql.fetchval(f"SELECT count(*) {_BACKENDS}", database_name), lambda count: count <= size + 1, timeout_s=20)


@pytest.mark.guarantee(7, "calls cancelled during a query and while they wait for a connection")
async def test_cancelled_calls(
    start_server: StartServer, add_backups: AddBackups, sql: Sql, database_name: str, *, measure: Measure
) -> None:
    """After ten thousand cancelled calls no connection is lost, no task remains, and no backend runs a query."""
    await add_backups(1)
    async with start_server(pool_size=10, admission_limit=100_000) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        stub = pb.BackupServiceStub(channel)
        await _call(stub, 5)
        tasks = len(asyncio.all_tasks())
        outcomes: Counter[StatusCode] = Counter()
        for _ in range(_CALLS // 500):
            async with sql.transaction():  # every query waits for its lock
                await sql.execute("LOCK TABLE backups IN ACCESS EXCLUSIVE MODE")
                calls: list[Any] = [stub.List(_LIST, timeout=30) for _ in range(500)]
                await eventually(lambda: server.admission.in_flight, lambda count: count >= 500, timeout_s=20)
                for call in calls:
                    call.cancel()
                for call in calls:
                    outcomes[await call.code()] += 1
        await eventually(lambda: server.admission.in_flight, 0, timeout_s=20)
        await eventually(lambda: len(asyncio.all_tasks()), lambda count: count <= tasks + 2, timeout_s=20)
        await eventually(lambda: sql.fetchval(f"SELECT count(*) {_BACKENDS} AND state = 'active'", database_name), 0, timeout_s=20)
        await _check_pool(stub, sql, database_name, size=10)
        measure(f"{outcomes[StatusCode.CANCELLED]} cancelled; tasks {tasks} before, {len(asyncio.all_tasks())} after")
        assert outcomes[StatusCode.CANCELLED] == _CALLS
