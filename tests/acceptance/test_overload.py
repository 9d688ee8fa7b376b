"""More calls than the service can answer.

Mitigations:
- Envoy limits the calls of each client address and the calls that are open at the replicas (`max_requests`). Its rejections contain a
  retry pushback (deploy/envoy.yaml).
- service/api/admission.py rejects calls by cost before it decodes them, with RESOURCE_EXHAUSTED and a retry pushback.
- gRPC's own queues, which would return CANCELLED, and its limit of streams are larger than these limits (`OPTIONS` of
  service/api/transport/listener.py).
- Health checks are not subject to admission.
"""

import asyncio
import contextlib
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.load import Result, Workload, run_workloads
from service import pb
from tests.support.catalog import AddBackups
from tests.support.deployment import ReplicaProcess, deployed
from tests.support.eventually import eventually
from tests.support.guarantees import Measure
from tests.support.load import INCOMPLETE, status
from tests.support.ports import free_ports

_LIST = "/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_REQUEST = pb.ListBackupsRequest(folder_id="f1", page_size=1000).SerializeToString()
_CONNECTIONS = 32
_SETTINGS: dict[str, Any] = {"BACKUPS_ADMISSION_LIMIT": "200"}  # the cost of 18 pages of 1,000 backups
_CALLS_WITHIN_LIMIT = 16
_DEADLINE_S = 10

_REJECTED_BY_ENVOY, _REJECTED_BY_SERVICE = "UNAVAILABLE with pushback", "RESOURCE_EXHAUSTED with pushback"
_TOO_LATE = {"DEADLINE_EXCEEDED", "late", "never sent"}
_OF_OTHERS = {"UNAVAILABLE"} | _TOO_LATE  # caused by other tests that run at the same time

Channels = list[grpc.aio.Channel]


class StatusCounts(Counter[str]):
    """Counts of statuses, and the number of rejections without pushback."""

    without_pushback = 0


async def _call(channel: grpc.aio.Channel, counts: StatusCounts) -> None:
    """Request a page of 1,000 backups without decoding it: that would cost the client more than the response costs the service."""
    method: Any = channel.unary_unary(_LIST)
    call = method(_REQUEST, timeout=_DEADLINE_S)
    name = await status(call)
    counts[name] += 1
    if name == "RESOURCE_EXHAUSTED" or "overflow" in (await call.details() or ""):  # rejected by the service or by Envoy
        counts.without_pushback += "grpc-retry-pushback-ms" not in dict(await call.trailing_metadata() or ())


class Target(NamedTuple):
    """The server that is called, and its health checks."""

    address: str
    token: str
    pid: int
    unanswered_checks: Callable[[], Awaitable[int]]
    """Returns the number of health checks that have failed until now."""


async def _drive(target: Target, seconds: float, rate: float = 0) -> Result:
    """Call from a separate process with a client that takes little of the processor, which the servers share.

    Without a rate, as many callers as the admission limit allows call one after the other.
    """
    connections = _CONNECTIONS if rate else _CALLS_WITHIN_LIMIT
    workload = Workload(target.address, _LIST, [_REQUEST.hex()], connections, 1, seconds, rate, target.token, _DEADLINE_S)
    [result] = await asyncio.to_thread(run_workloads, workload)
    return result


async def _peaks(target: Target, count: int, *, long: bool) -> list[float]:
    """Return answered calls per second, without excess calls, `count` times."""
    return [(await _drive(target, 4 if long else 0.5)).answered_per_second for _ in range(count)]


async def _overloaded(target: Target, *, long: bool, allowed: set[str], goodput: float) -> str:
    """Measure the peak, offer twice the peak, and measure the peak again, because a shared machine changes its speed; return a summary.

    Raises:
        AssertionError: a guarantee is not kept.
    """
    memory = psutil.Process(target.pid).memory_info
    await _drive(target, 1 if long else 0.5)
    before, peaks = memory().rss, await _peaks(target, 3 if long else 1, long=long)
    offered = 2 * max(peaks)
    unanswered = await target.unanswered_checks()
    overload = await _drive(target, 30 if long else 2, rate=offered)
    unanswered = await target.unanswered_checks() - unanswered
    after = memory().rss
    if long:
        await asyncio.sleep(1)
        await _drive(target, 1)
    [again] = await _peaks(target, 1, long=long)
    peaks += await _peaks(target, 2 if long else 0, long=long)
    peak = statistics.median(peaks)
    assert overload.errors.keys() <= (allowed if long else allowed | _OF_OTHERS)
    assert after < before + ((150 if goodput else 350) << 20)  # without Envoy, calls wait inside gRPC until their deadlines
    assert overload.calls > 0
    assert unanswered <= (0 if long else 2)
    summary = f"peak {peak:.0f}/s ({min(peaks):.0f} to {max(peaks):.0f}); offered {offered:.0f}/s, {_summary(overload)}; "
    summary += f"{again:.0f}/s afterwards; memory {before >> 20} to {after >> 20} MiB"
    if long and goodput:  # the short form runs next to other tests
        assert overload.answered_per_second >= goodput * peak, summary
        assert again >= 0.85 * peak, summary
    return summary


def _summary(result: Result) -> str:
    rejected = ", ".join(f"{count} {error}" for error, count in result.errors.items())
    cost = result.client_us * result.calls / 1e6 / result.seconds
    answered = f"answered {result.answered_per_second:.0f}/s, p99 {result.p99_ms:.0f} ms, {rejected or 'none rejected'}"
    return f"{answered}; the client took {cost:.0%} of a core"


@pytest.mark.slow
@pytest.mark.guarantee(6, "twice the capacity offered through Envoy, open loop, on 32 connections")
async def test_overload_through_envoy(database_url: str, add_backups: AddBackups, *, long: bool, measure: Measure) -> None:
    """Excess calls are rejected with pushback, the others are answered, no call is CANCELLED, and health checks succeed."""
    await add_backups(1000)
    async with deployed(database_url, replicas=1, **_SETTINGS) as deployment:

        async def unanswered_checks() -> int:
            [failures] = (await deployment.stats("cluster.service.health_check.failure")).values()
            return failures

        [replica] = deployment.replicas
        assert isinstance(replica, ReplicaProcess)
        target = Target(f"127.0.0.1:{deployment.port}", deployment.token(), replica.pid, unanswered_checks)
        measure(await _overloaded(target, long=long, allowed={_REJECTED_BY_ENVOY, _REJECTED_BY_SERVICE}, goodput=0.85))
        if long:  # gRPC's limit of streams is not below Envoy's limit of calls
            [resets] = (await deployment.stats("cluster.service.http2.rx_reset")).values()
            assert resets == 0


@pytest.mark.slow
@pytest.mark.guarantee(6, "twice the capacity offered directly, open loop, on 32 connections")
async def test_overload_directly(database_url: str, add_backups: AddBackups, tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """No call is CANCELLED, health checks succeed, and memory is bounded; the answered calls and the recovery are only reported.

    Accepting a call takes gRPC nearly as long as answering it. Calls therefore wait before admission, until their deadlines pass.
    Envoy in front of the replicas prevents this.
    """
    await add_backups(1000)
    async with _direct(database_url, tmp_path) as replica:
        address, checks = f"127.0.0.1:{replica.port}", Counter[StatusCode]()

        async def check_repeatedly() -> None:
            async with grpc.aio.insecure_channel(address) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                while True:
                    checks[await stub.Check(health_pb2.HealthCheckRequest(), timeout=1).code()] += 1
                    await asyncio.sleep(0.2)

        async def unanswered_checks() -> int:
            two_more = checks.total() + 2  # the first may have begun before
            await eventually(lambda: checks.total(), lambda total: total >= two_more or checking.done())
            assert not checking.done(), checking.exception()
            return checks.total() - checks[StatusCode.OK]

        checking = asyncio.ensure_future(check_repeatedly())
        try:
            target = Target(address, "", replica.pid, unanswered_checks)
            measure(await _overloaded(target, long=long, allowed={_REJECTED_BY_SERVICE} | _TOO_LATE, goodput=0))
        finally:
            checking.cancel()


@contextlib.asynccontextmanager
async def _direct(database_url: str, folder: Path) -> AsyncIterator[ReplicaProcess]:
    """Run a replica without Envoy."""
    [port] = free_ports(1)
    replica = ReplicaProcess(port, {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_DRAIN_DELAY": "0"} | _SETTINGS, folder / "log")
    async with replica.running():
        await replica.serving()
        yield replica


async def _burst(channels: Channels, count: int) -> StatusCounts:
    counts = StatusCounts()
    await asyncio.gather(*(_call(channels[number % len(channels)], counts) for number in range(count)))
    return counts


@pytest.mark.slow
@pytest.mark.guarantee(6, "5,000 concurrent calls, through Envoy and directly")
async def test_bursts(database_url: str, add_backups: AddBackups, tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """Every call of a burst is answered or rejected with pushback, and none is CANCELLED."""
    await add_backups(1000)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with (
        _direct(database_url, tmp_path) as direct,
        deployed(database_url, replicas=2, **_SETTINGS) as deployment,
        contextlib.AsyncExitStack() as stack,
    ):
        targets: dict[str, Callable[[], grpc.aio.Channel]] = {
            "through Envoy": deployment.channel,
            "directly": lambda: grpc.aio.insecure_channel(f"127.0.0.1:{direct.port}", options=options),
        }
        for name, connect in targets.items():
            channels = [await stack.enter_async_context(connect()) for _ in range(50)]
            counts = await _burst(channels, 5000 if long else 2000)
            measure(f"{name}: {', '.join(f'{count} {code}' for code, count in counts.most_common())}")
            assert counts.keys() <= {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", INCOMPLETE}
            assert counts["OK"] > 0
            assert counts.without_pushback == 0
