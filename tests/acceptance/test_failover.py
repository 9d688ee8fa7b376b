"""High availability by Patroni: its leader killed, cut off from etcd, and switched over as planned.

Mitigations: `target_session_attrs` with all hosts in BACKUPS_DATABASE_URL: with the first leader's alone, nobody is answered until that is
back, if ever; no connection is trusted beyond its first error, and none lives longer than BACKUPS_POOL_MAX_AGE.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from service.postgres.migration import Roles
from tests.acceptance.bars import Figure
from tests.acceptance.deployment import ReplicaProcess, deployed
from tests.acceptance.history import History
from tests.acceptance.walks import Folder
from tests.conftest import free_ports
from tests.patroni import TTL_S, Cluster, Node, patroni_cluster

_SEED = 4
_POOL_MAX_AGE_S = 5
_MAX_LAG_S = 5
_MARGIN_S = 15  # of a machine that is busy with all of it: Patroni's turns, a promotion, a start of PostgreSQL, connecting

_FAILOVER_S = TTL_S + _MARGIN_S
"""Within which calls are answered again where a leader is lost: its lock has to run out first."""

_SWITCHOVER_S = _MARGIN_S


class Fault(NamedTuple):
    """What is done to the cluster, from a settled one to a settled one, and how long nobody may be answered by a primary."""

    name: str
    inject: Callable[[Cluster], Awaitable[None]]
    bound_s: float


async def _kill_leader(cluster: Cluster) -> None:
    leader = await cluster.leader()
    leader.kill()
    await _until_led_by_another(cluster, leader)
    leader.start()


async def _cut_leader_off(cluster: Cluster) -> None:
    """From etcd, but not from the service."""
    leader = await cluster.leader()
    leader.etcd.blackhole()
    try:
        await _until_led_by_another(cluster, leader)
        await asyncio.sleep(_POOL_MAX_AGE_S + _MAX_LAG_S + 5)  # while the one that led still answers whoever asks
    finally:
        leader.etcd.heal()


async def _switch_over(cluster: Cluster) -> None:
    await cluster.switch_over()


async def _until_led_by_another(cluster: Cluster, leader: Node) -> None:
    async with asyncio.timeout(90):
        while await cluster.leader() is leader:
            await asyncio.sleep(0.05)


_KILLED = Fault("leader killed", _kill_leader, _FAILOVER_S)
_CUT_OFF = Fault("leader cut off from etcd", _cut_leader_off, _FAILOVER_S)
_SWITCHED = Fault("switchover", _switch_over, _SWITCHOVER_S)


@contextlib.asynccontextmanager
async def _direct_replica(database_url: str, log: Path) -> AsyncIterator[Callable[[], grpc.aio.Channel]]:
    """A replica without Envoy; opens a connection to it."""
    [port] = free_ports(1)
    settings = {
        "BACKUPS_DATABASE_URL": database_url,
        "BACKUPS_POOL_MAX_AGE": str(_POOL_MAX_AGE_S),
        "BACKUPS_MAX_REPLICATION_LAG": str(_MAX_LAG_S),
    }
    replica = ReplicaProcess(port, settings, log)
    await replica.start()
    try:
        yield lambda: grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        )
        replica.check_runs()
    finally:
        await replica.end(signal.SIGKILL)


@pytest.mark.debian("etcd-server", program="etcd")
@pytest.mark.timeout(900)
@pytest.mark.bar(4, "Patroni's leader killed, cut off from etcd, and switched over, under load through Envoy")
async def test_failover(tmp_path: Path, *, long: bool, figure: Figure) -> None:
    """Calls are answered again within a bound and are UNAVAILABLE until then; walks begun before go on and see every row once; a replica that
    prefers a standby is answered throughout, and its answers are as old as is stated, at most."""
    faults = [_KILLED, _CUT_OFF, _SWITCHED] * 3 if long else [_KILLED, _SWITCHED]
    histories = tmp_path / "histories"
    histories.mkdir()
    folder = Folder(histories, seed=_SEED)
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(patroni_cluster())
        await stack.enter_async_context(folder.written(cluster.url("read-write"), rows=1000))
        url = cluster.url("read-write", user=Roles().service)
        deployment = await stack.enter_async_context(deployed(url, BACKUPS_POOL_MAX_AGE=str(_POOL_MAX_AGE_S)))
        open_channel = await stack.enter_async_context(_direct_replica(cluster.url("prefer-standby"), tmp_path / "log"))
        await cluster.settled()
        on_primary = await stack.enter_async_context(folder.walked("primary", 8, deployment.channel))
        on_standby = await stack.enter_async_context(folder.walked("standby", 4, open_channel))
        await asyncio.sleep(2)
        spans = []
        for fault in faults:
            began = time.monotonic()
            await fault.inject(cluster)
            await cluster.settled()
            spans.append((fault, began, time.monotonic()))
    walkers = {each: History.read(histories / "writer.jsonl", *histories.glob(f"{each}-*")) for each in ("primary", "standby")}
    for fault, began, ended in spans:
        silence, other = (each.longest_silence(began, ended) for each in walkers.values())
        figure(f"{fault.name}: {silence:.1f} s without an answer, {other:.1f} s where a standby is preferred")
        assert silence < fault.bound_s
    figure(f"{len(walkers['primary'].pages())} pages: {on_primary}, {on_standby}")
    assert set(on_primary) | set(on_standby) <= {"OK", "UNAVAILABLE"}
    assert walkers["primary"].problems() == []
    assert walkers["standby"].problems(staleness=2 * _MAX_LAG_S) == []
