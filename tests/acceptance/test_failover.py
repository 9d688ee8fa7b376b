"""Failover by Patroni: the leader is killed, disconnected from etcd, or switched over as planned.

Mitigations:
- BACKUPS_DATABASE_URL contains all hosts and `target_session_attrs`. The attributes are compared with the server, not with the service's
  own read-only sessions (`_TARGET_SESSION_ATTRIBUTES` of service/postgres/database.py). Otherwise no server would match.
- Connections are replaced after BACKUPS_POOL_MAX_AGE.
- The replication lag of a standby is checked before it is preferred (`connect_unless_lagging` of service/postgres/connect/replication.py).
  Otherwise a former leader that is disconnected from etcd would be read from until it is connected again.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import asyncpg
import grpc
import pytest

from service.postgres.migration import Roles
from tests.support.deployment import ReplicaProcess, deployed
from tests.support.eventually import eventually
from tests.support.guarantees import Measure
from tests.support.history import History
from tests.support.patroni import TTL_S, Cluster, Node, patroni_cluster
from tests.support.ports import free_ports
from tests.support.walks import Folder

_SEED = 4
_POOL_MAX_AGE_S = 5
_MAX_LAG_S = 5
_STALENESS_S = _MAX_LAG_S + 4  # up to two seconds between two lag checks, and the duration of a call
_MARGIN_S = 15  # for Patroni's loop, a promotion, a start of PostgreSQL and new connections, on a busy machine

_FAILOVER_S = TTL_S + _MARGIN_S
"""Bound of the time until calls are answered after the leader is lost: its lock must expire first."""

_SWITCHOVER_S = _MARGIN_S

_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND clock_timestamp() - backend_start > $2 * interval '1 s'"


class Fault(NamedTuple):
    """A fault of a settled cluster, and the bound of the time in which no call is answered by a primary."""

    name: str
    inject: Callable[[Cluster], Awaitable[None]]
    bound_s: float


async def _kill_leader(cluster: Cluster) -> None:
    leader = await cluster.leader()
    leader.kill()
    await _until_led_by_another(cluster, leader)
    leader.start()


async def _cut_leader_off(cluster: Cluster) -> None:
    """Disconnect the leader from etcd, but not from the service."""
    leader = await cluster.leader()
    leader.etcd.blackhole()
    try:
        await _until_led_by_another(cluster, leader)
        await asyncio.sleep(_POOL_MAX_AGE_S + _MAX_LAG_S + 5)  # the former leader still accepts connections
        assert await _sessions(leader, older_than_s=_POOL_MAX_AGE_S + _MARGIN_S / 3) == 0
    finally:
        leader.etcd.restore()


async def _sessions(node: Node, *, older_than_s: float) -> int:
    """Count old sessions of the service. New ones are expected: a replica that prefers a standby reads the replication lag."""
    connection = await asyncpg.connect(f"postgresql://postgres@127.0.0.1:{node.port}/postgres")
    try:
        return int(await connection.fetchval(_SESSIONS, Roles().service, older_than_s))
    finally:
        await connection.close()


async def _switch_over(cluster: Cluster) -> None:
    await cluster.switch_over()


async def _until_led_by_another(cluster: Cluster, leader: Node) -> None:
    await eventually(cluster.leader, lambda node: node is not leader, timeout_s=90, period_s=0.2)


_KILLED = Fault("leader killed", _kill_leader, _FAILOVER_S)
_CUT_OFF = Fault("leader cut off from etcd", _cut_leader_off, _FAILOVER_S)
_SWITCHED = Fault("switchover", _switch_over, _SWITCHOVER_S)


@contextlib.asynccontextmanager
async def _direct_replica(database_url: str, log: Path) -> AsyncIterator[Callable[[], grpc.aio.Channel]]:
    """Run a replica without Envoy; yield a function that opens a channel to it."""
    [port] = free_ports(1)
    ages = {"BACKUPS_POOL_MAX_AGE": str(_POOL_MAX_AGE_S), "BACKUPS_MAX_REPLICATION_LAG": str(_MAX_LAG_S)}
    replica = ReplicaProcess(port, {"BACKUPS_DATABASE_URL": database_url} | ages, log)
    async with replica.running():
        yield lambda: grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        )
        replica.check_runs()


class _Walked(NamedTuple):
    """A cluster whose folder is walked, and the outcomes of the calls."""

    cluster: Cluster
    by_primary: Counter[str]
    by_standby: Counter[str]


@contextlib.asynccontextmanager
async def _walked_cluster(histories: Path, log: Path) -> AsyncIterator[_Walked]:
    """Write to a cluster and walk through its folder: with Envoy on the primary, and with a replica that prefers a standby."""
    folder = Folder(histories, seed=_SEED)
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(patroni_cluster())
        await stack.enter_async_context(folder.written(cluster.url("read-write"), rows=1000))
        url = cluster.url("read-write", user=Roles().service)
        deployment = await stack.enter_async_context(deployed(url, BACKUPS_POOL_MAX_AGE=str(_POOL_MAX_AGE_S)))
        open_channel = await stack.enter_async_context(_direct_replica(cluster.url("prefer-standby"), log))
        by_primary = await stack.enter_async_context(folder.walked("primary", 4, deployment.channel))
        by_standby = await stack.enter_async_context(folder.walked("standby", 2, open_channel))
        await _until_walked(by_primary, by_standby)
        yield _Walked(cluster, by_primary, by_standby)


@pytest.mark.slow
@pytest.mark.debian("etcd-server", program="etcd")
@pytest.mark.timeout(900)
@pytest.mark.guarantee(4, "Patroni's leader killed, cut off from etcd, and switched over, under load through Envoy")
async def test_failover(tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """Calls are UNAVAILABLE until a new leader answers them within the bound, and walks continue over the change and see every row once.

    A replica that prefers a standby answers during the change, with data that is not older than the maximum lag.
    """
    faults = [_KILLED, _CUT_OFF, _SWITCHED] * (3 if long else 1)
    histories = tmp_path / "histories"
    histories.mkdir()
    spans = []
    async with _walked_cluster(histories, tmp_path / "log") as (cluster, by_primary, by_standby):
        for fault in faults:
            began = time.monotonic()
            await fault.inject(cluster)
            await cluster.settled()
            spans.append((fault, began, time.monotonic()))
    primary, standby = (History.read(histories / "writer.jsonl", *histories.glob(f"{name}-*")) for name in ("primary", "standby"))
    for fault, began, ended in spans:
        by_primary_gap, by_standby_gap = primary.longest_gap(began, ended), standby.longest_gap(began, ended)
        measure(
            f"{fault.name}: {_seconds(by_primary_gap):.1f} s without a response, {_seconds(by_standby_gap):.1f} s if a standby is preferred"
        )
        assert _seconds(by_primary_gap) < fault.bound_s
        assert _seconds(by_standby_gap) < _SWITCHOVER_S
        assert primary.walks_over(*by_primary_gap)
    walks, pages = len(primary.walks) + len(standby.walks), len(primary.pages()) + len(standby.pages())
    measure(f"{walks} walks, {pages} pages, {(by_primary + by_standby)['UNAVAILABLE']} calls UNAVAILABLE")
    assert set(by_primary) | set(by_standby) <= {"OK", "UNAVAILABLE"}
    assert primary.problems()[:10] == []
    assert standby.problems(staleness=_STALENESS_S)[:10] == []


def _seconds(span: tuple[float, float]) -> float:
    return span[1] - span[0]


async def _until_walked(*outcomes: Counter[str]) -> None:
    await eventually(lambda: min(each["OK"] for each in outcomes), lambda fewest: fewest >= 50, timeout_s=30)
