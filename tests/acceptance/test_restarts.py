"""Restarts of replicas under load.

Mitigations:
- A replica reports NOT_SERVING and waits for the drain delay before it stops.
- Envoy retries calls whose connection broke (`retry_on` of deploy/envoy.yaml), all of them immediately (`max_retries`). Without `retry_on`,
  calls fail at each kill -9.
"""

import asyncio
import contextlib
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
from tests.support.deployment import ReplicaProcess, deployed
from tests.support.eventually import eventually
from tests.support.guarantees import Measure
from tests.support.load import under_load
from tests.support.ports import free_ports


@pytest.mark.slow
@pytest.mark.guarantee(1, "replicas behind Envoy restarted in turn under a steady load, by gRPC and REST, no retry in the client")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_replicas_are_restarted_in_turn(
    database_url: str, add_backups: AddBackups, number: signal.Signals, *, long: bool, measure: Measure
) -> None:
    """No call fails while three replicas are restarted one after the other, by SIGTERM or kill -9."""
    await add_backups(20)
    rounds = 10 if long else 1
    async with deployed(database_url, replicas=3) as deployment:
        outcomes = await under_load(deployment, lambda: deployment.restart_in_turn(number, rounds=rounds), pause_s=0.1)
    measure(f"{number.name}, {rounds} rounds of 3: {outcomes}")
    assert outcomes.codes == {"OK", "HTTP 200"}
    assert outcomes["OK"] > 20


_RATE_LIMIT_S = 0.25  # Envoy accepts 250 calls of an address in this time


async def test_killed_replica_with_many_calls(database_url: str) -> None:
    """The other replicas answer every call of a killed replica, even if they are most of the calls that Envoy has in flight."""
    async with deployed(database_url, replicas=2) as deployment, contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(deployment.channel()) for _ in range(6)]  # each of 100 calls at a time
        killed = deployment.replicas[0]
        assert isinstance(killed, ReplicaProcess)
        killed.send_signal(signal.SIGSTOP)
        calls: list[Any] = []
        for channel in channels:
            stub = pb.BackupServiceStub(channel)
            calls += [stub.List(pb.ListBackupsRequest(folder_id="f1"), timeout=20) for _ in range(100)]
            await asyncio.sleep(_RATE_LIMIT_S)
        # The calls of the stopped replica, about half of them, wait.
        await eventually(lambda: sum(call.done() for call in calls), lambda done: done >= len(calls) // 3, timeout_s=20)
        await killed.stop(signal.SIGKILL)
        assert Counter([await call.code() for call in calls]) == {StatusCode.OK: len(calls)}


async def test_killed_while_it_sends_responses(database_url: str, add_backups: AddBackups) -> None:
    """Calls whose response a killed replica was sending fail with INTERNAL, as docs/api.md says, and all other calls succeed."""
    await add_backups(1000, source_cluster_id="c" * 50)
    codes: Counter[str] = Counter()
    async with deployed(database_url, replicas=2) as deployment, deployment.channel() as channel:
        stub = pb.BackupServiceStub(channel)
        while "INTERNAL" not in codes:
            calls: list[Any] = [stub.List(pb.ListBackupsRequest(folder_id="f1", page_size=1000), timeout=20) for _ in range(60)]
            await eventually(lambda: any(call.done() for call in calls), True, timeout_s=20)  # noqa: B023  # waits for them
            await deployment.replicas[0].restart(signal.SIGKILL)
            codes.update([(await call.code()).name for call in calls])
            await deployment.settled()
    assert codes.keys() == {"OK", "INTERNAL"}


_CLIENTS = 16


class _Calls:
    """Clients without Envoy or retries that request pages one after the other."""

    def __init__(self, port: int) -> None:
        self._address = f"127.0.0.1:{port}"
        self.outcomes: Counter[str] = Counter()
        self._responses = [0] * _CLIENTS
        """The number of responses of each client."""
        self.failed: list[tuple[float, float]] = []
        """Start and end of each failed call."""
        self.stop = asyncio.Event()

    async def run(self, client: int) -> None:
        """Call until `stop` is set."""
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            stub = pb.BackupServiceStub(channel)
            while not self.stop.is_set():
                began = time.monotonic()
                code = await stub.List(pb.ListBackupsRequest(folder_id="f1", page_size=1000), timeout=10).code()
                self.outcomes[code.name] += 1
                self._responses[client] += code is StatusCode.OK
                if code is not StatusCode.OK:
                    self.failed.append((began, time.monotonic()))
                    await asyncio.sleep(0.05)

    async def ten_more(self) -> None:
        """Wait for ten further responses of each client, so that all are connected."""
        expected = [responses + 10 for responses in self._responses]
        await eventually(lambda: [*map(int.__ge__, self._responses, expected)], all, timeout_s=20)


@pytest.mark.guarantee(2, "SIGTERM with calls in flight, clients connected directly and backing off")
async def test_directly_connected_clients(database_url: str, add_backups: AddBackups, tmp_path: Path, *, measure: Measure) -> None:
    """All calls in flight finish, and new calls are UNAVAILABLE, never CANCELLED, until the replica has restarted."""
    await add_backups(1000)
    [port] = free_ports(1)
    log = tmp_path / "log"
    replica = ReplicaProcess(port, {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_DRAIN_DELAY": "0.1"}, log)
    calls = _Calls(port)
    signalled: list[float] = []
    async with replica.running(), asyncio.TaskGroup() as callers:
        for client in range(_CLIENTS):
            callers.create_task(calls.run(client))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            await calls.ten_more()
            signalled.append(time.monotonic())
            await replica.restart(number)
        calls.stop.set()
    measure(", ".join(f"{count} {code}" for code, count in calls.outcomes.most_common()))
    assert set(calls.outcomes) == {"OK", "UNAVAILABLE"}
    assert not [at for at in signalled for began, ended in calls.failed if began < at < ended]
