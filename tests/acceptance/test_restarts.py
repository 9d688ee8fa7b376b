"""Replicas that come and go.

Mitigations: NOT_SERVING and the drain delay before a replica ends, and Envoy's retries (`retry_on` of deploy/envoy.yaml) of what was cut
off, all of it at once (`max_retries`); without retry_on, calls fail at each kill -9.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from service import pb
from tests.support.catalog import AddBackups
from tests.support.deployment import Deployment, ReplicaProcess, deployed
from tests.support.guarantees import Measure
from tests.support.load import under_load
from tests.support.ports import free_ports


async def restarted_in_turn(deployment: Deployment, number: signal.Signals, rounds: int) -> None:
    for _ in range(rounds):
        for replica in deployment.replicas:
            await replica.restart(number)
            await deployment.settled()


@pytest.mark.guarantee(1, "replicas behind Envoy restarted in turn under a steady load, by gRPC and REST, no retry in the client")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_replicas_are_restarted_in_turn(
    database_url: str, add_backups: AddBackups, number: signal.Signals, *, long: bool, measure: Measure
) -> None:
    """No call fails while three replicas are restarted one after the other, by SIGTERM or kill -9."""
    await add_backups(20)
    rounds = 10 if long else 1
    async with deployed(database_url, replicas=3) as deployment:
        outcomes = await under_load(deployment, lambda: restarted_in_turn(deployment, number, rounds))
    measure(f"{number.name}, {rounds} rounds of 3: {outcomes}")
    assert outcomes.codes == {"OK", "HTTP 200"}
    assert outcomes["OK"] > 20


async def test_many_calls_are_cut_off_at_once(database_url: str) -> None:
    """All calls that a replica held when it was killed are answered by the others, however few calls Envoy has in flight by then."""
    async with deployed(database_url, replicas=2) as deployment, deployment.channel() as channel:
        lost = deployment.replicas[0]
        assert isinstance(lost, ReplicaProcess)
        os.kill(lost.pid, signal.SIGSTOP)
        stub = pb.BackupServiceStub(channel)
        calls: list[Any] = [stub.List(pb.ListBackupsRequest(folder_id="f1"), timeout=20) for _ in range(600)]
        async with asyncio.timeout(20):
            while sum(call.done() for call in calls) < len(calls) // 2:
                await asyncio.sleep(0.01)
        await lost.end(signal.SIGKILL)
        assert Counter([await call.code() for call in calls]) == {StatusCode.OK: len(calls)}


@pytest.mark.guarantee(2, "SIGTERM with calls in flight, clients connected directly and backing off")
async def test_directly_connected_clients(database_url: str, add_backups: AddBackups, tmp_path: Path, *, measure: Measure) -> None:
    """All calls in flight finish; new ones are UNAVAILABLE, never CANCELLED, until the replica is there again."""
    await add_backups(1000)
    [port] = free_ports(1)
    log = tmp_path / "log"
    replica = ReplicaProcess(port, {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_DRAIN_DELAY": "0.5"}, log)
    outcomes: Counter[str] = Counter()
    unanswered: list[tuple[float, float]] = []  # when these calls had begun, and ended
    stop = asyncio.Event()

    async def call() -> None:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            stub = pb.BackupServiceStub(channel)
            while not stop.is_set():
                began = time.monotonic()
                code = await stub.List(pb.ListBackupsRequest(folder_id="f1", page_size=1000), timeout=10).code()
                outcomes[code.name] += 1
                if code is not StatusCode.OK:
                    unanswered.append((began, time.monotonic()))
                    await asyncio.sleep(0.05)

    signalled: list[float] = []
    async with replica.running(), asyncio.TaskGroup() as callers:
        for _ in range(16):
            callers.create_task(call())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            before = outcomes["OK"]
            async with asyncio.timeout(20):
                while outcomes["OK"] < before + 100:
                    await asyncio.sleep(0.01)
            signalled.append(time.monotonic())
            await replica.restart(number)
        stop.set()
    measure(", ".join(f"{count} {code}" for code, count in outcomes.most_common()))
    assert set(outcomes) == {"OK", "UNAVAILABLE"}
    assert not [at for at in signalled for began, ended in unanswered if began < at < ended]
