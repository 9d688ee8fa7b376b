"""Admission limit, and the rejection of excess calls."""

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from service import pb
from service.api.admission import FAIRNESS_WINDOW, Admission, IncompleteRequests, cost_of
from service.errors import Overloaded, ShuttingDown
from service.server import Server
from tests.support.catalog import Sql
from tests.support.eventually import eventually
from tests.support.failures import failure
from tests.support.server import StartServer, both_ways_to_accept


def test_costs() -> None:
    """A Get costs 1, a page 1 more for each hundred backups that it may have; a size beyond the limits costs no more than the largest."""
    for request, cost in [
        (pb.GetBackupRequest(), 1),
        (pb.ListBackupsRequest(), 2),
        (pb.ListBackupsRequest(page_size=99), 1),
        (pb.ListBackupsRequest(page_size=1000), 11),
        (pb.ListClusterBackupsRequest(), 2),
        (pb.ListClusterBackupsRequest(page_size=1000), 11),
        (pb.ListBackupsRequest(page_size=2**63 - 1), 11),
        (pb.ListBackupsRequest(page_size=-(2**63)), 1),
    ]:
        assert cost_of(request) == cost


def test_the_limit() -> None:
    """A call that would exceed the limit is rejected; a released cost can be used again."""
    admission = Admission(12)
    page = admission.admit("a", 11)
    assert admission.in_flight == page == 11
    admission.admit("a", 1)
    with pytest.raises(Overloaded):
        admission.admit("a", 1)
    admission.release("a", page)
    assert admission.admit("a", 11) == 11


def test_idle_server_admits_any_page() -> None:
    """An idle server admits the largest page, however low the limit is."""
    admission = Admission(3)
    assert admission.admit("a", 11) == 3
    with pytest.raises(Overloaded):
        admission.admit("a", 1)


_CLIENTS = st.sampled_from("abc")
_STEPS = st.one_of(
    st.tuples(st.just("admit"), _CLIENTS, st.integers(1, 11)),
    st.tuples(st.just("release"), st.integers(0, 100), st.none()),
    st.tuples(st.just("wait"), st.floats(0, 2 * FAIRNESS_WINDOW.total_seconds()), st.none()),
)


class _Model:
    """The calls that a limit should admit. It keeps all calls that were made."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held: list[tuple[str, int]] = []
        self._called: dict[str, float] = {}

    def admits(self, client: str, cost: int, now: float) -> bool:
        """Record a call, and return True if it should be admitted."""
        own = sum(each for holder, each in self.held if holder == client)
        window = FAIRNESS_WINDOW.total_seconds()
        others = any(now - at <= window for other, at in self._called.items() if other != client)
        self._called[client] = now
        asked = min(cost, self._limit)
        return self.in_flight + asked <= self._limit and not (others and own and own + asked > self._limit // 2)

    @property
    def in_flight(self) -> int:
        return sum(each for _, each in self.held)


@given(limit=st.integers(1, 60), steps=st.lists(_STEPS, max_size=200))
@settings(max_examples=300)
def test_fair_shares(limit: int, steps: list[tuple[str, Any, Any]]) -> None:
    """A call is rejected if the limit is reached, or if its client would hold over half of it while another client calls, and only then.

    A client that holds nothing is never over its share.
    """
    admission, model, clock = Admission(limit), _Model(limit), 1000.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.api.admission.time.monotonic", lambda: clock)
        for step, value, cost in steps:
            if step == "wait":
                clock += value
            elif step == "release" and model.held:
                admission.release(*model.held.pop(value % len(model.held)))
            elif step == "admit":
                expected = model.admits(value, cost, clock)
                try:
                    model.held.append((value, admission.admit(value, cost)))
                except Overloaded:
                    assert not expected
                else:
                    assert expected
            assert admission.in_flight == model.in_flight <= limit
    for each in model.held:
        admission.release(*each)
    assert (admission.in_flight, admission._in_flight_of) == (0, {})


def test_the_oldest_incomplete_request_is_rejected() -> None:
    """Beyond the limit, the request that has been incomplete for longest is rejected; one that was read is not."""
    incomplete = IncompleteRequests(limit=2)
    rejected: list[str] = []
    numbers = [incomplete.add(lambda error, name=name: rejected.append(name)) for name in ("a", "b")]  # type: ignore[misc]
    incomplete.remove(numbers[0])
    for name in ("c", "d"):
        incomplete.add(lambda error, name=name: rejected.append(name))  # type: ignore[misc]
    assert (rejected, len(incomplete)) == (["b"], 2)


async def test_idle_window() -> None:
    """`idle` returns when no call has arrived for the window, or when its timeout is over."""
    admission = Admission(1)
    admission.reject_new_calls()

    async def call_on() -> None:
        while True:
            with pytest.raises(ShuttingDown):
                admission.arrive()
            await asyncio.sleep(0)

    async with asyncio.timeout(20):
        calling = asyncio.ensure_future(call_on())
        await admission.idle(timedelta(milliseconds=1), timeout=timedelta(milliseconds=50))
        waiting = asyncio.ensure_future(admission.idle(timedelta(milliseconds=20), timeout=timedelta(seconds=60)))
        await asyncio.sleep(0)
        calling.cancel()
        await waiting


@both_ways_to_accept
async def test_calls_over_the_limit(start_server: StartServer, sql: Sql) -> None:
    """Calls over the limit are RESOURCE_EXHAUSTED with a retry delay, health checks are not, and a finished call makes room."""
    async with start_server(admission_limit=3) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        stub = pb.BackupServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            held = [asyncio.ensure_future(failure(stub.Get(pb.GetBackupRequest(backup_id="a")))) for _ in range(2)]
            await _until_in_flight(server, 2)

            error = await failure(stub.List(pb.ListBackupsRequest(folder_id="f", page_size=1000)))  # a cost of 11; 1 is left
            assert (error.code, error.reason) == (StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert 500 <= int(error.trailers["grpc-retry-pushback-ms"]) <= 1500
            held.append(asyncio.ensure_future(failure(stub.Get(pb.GetBackupRequest(backup_id="a")))))
            await _until_in_flight(server, 3)

            assert (await failure(stub.Get(pb.GetBackupRequest(backup_id="a")))).code is StatusCode.RESOURCE_EXHAUSTED
            assert (await health.Check(health_pb2.HealthCheckRequest())).status
        assert [error.code for error in await asyncio.gather(*held)] == [StatusCode.NOT_FOUND] * 3
        assert server.admission.in_flight == 0
        assert (await failure(stub.Get(pb.GetBackupRequest(backup_id="a")))).code is StatusCode.NOT_FOUND


@both_ways_to_accept
async def test_calls_that_end_early_release_their_cost(start_server: StartServer, sql: Sql) -> None:
    """Calls that are cancelled, time out or are rejected release their cost."""
    async with start_server(admission_limit=10, request_timeout="0.3") as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        stub = pb.BackupServiceStub(channel)
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            call = stub.Get(pb.GetBackupRequest(backup_id="a"))
            waiting = asyncio.ensure_future(call.wait_for_connection())
            await _until_in_flight(server, 1)
            call.cancel()
            await asyncio.wait([waiting])
            await failure(stub.List(pb.ListBackupsRequest(folder_id="f")))
            await failure(stub.List(pb.ListBackupsRequest(folder_id="f", page_size=-1)))
            await failure(stub.Get(pb.GetBackupRequest()))
            await _until_in_flight(server, 0)


async def _until_in_flight(server: Server, cost: int) -> None:
    await eventually(lambda: server.admission.in_flight, cost)


async def test_held_call_is_cancelled(server: Server, stub: pb.BackupServiceStub, capsys: pytest.CaptureFixture[str]) -> None:
    """A call that is held during shutdown and that its client cancels ends immediately, and is logged as CANCELLED."""
    server.admission.reject_new_calls()
    call = stub.Get(pb.GetBackupRequest(backup_id="a"))
    waiting = asyncio.ensure_future(call.wait_for_connection())
    await eventually(lambda: server.admission._arrivals, 1)
    call.cancel()
    await asyncio.wait([waiting])
    await eventually(lambda: capsys.readouterr().err, lambda text: '"code": "CANCELLED"' in text, timeout_s=4)  # held for 5 s
