"""How much is admitted at once, and what the rest is told."""

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import pb
from service.api.admission import Admission
from service.errors import Overloaded, ShuttingDown
from service.server import Server
from tests.support.answers import failure
from tests.support.catalog import Sql
from tests.support.server import StartServer


def test_weights() -> None:
    """A Get weighs one, a page one more for each hundred backups that it may have; hostile sizes weigh no more than the largest."""
    admission = Admission(1000)
    for request, weight in [
        (pb.GetBackupRequest(), 0),
        (pb.ListBackupsRequest(), 1),
        (pb.ListBackupsRequest(page_size=99), 0),
        (pb.ListBackupsRequest(page_size=1000), 10),
        (pb.ListBackupsRequest(page_size=2**63 - 1), 10),
        (pb.ListBackupsRequest(page_size=-(2**63)), 0),
    ]:
        assert admission.weigh(request) == weight


def test_the_limit() -> None:
    """What would pass the limit is refused, and what is released makes room."""
    admission = Admission(12)
    page = admission.admit() + admission.weigh(pb.ListBackupsRequest(page_size=1000))
    assert admission.in_flight == page == 11
    admission.admit()
    with pytest.raises(Overloaded):
        admission.admit()
    admission.release(page)
    assert admission.weigh(pb.ListBackupsRequest(page_size=1000)) == 10
    with pytest.raises(Overloaded):
        admission.weigh(pb.ListBackupsRequest(page_size=200))


def test_room_for_any_page() -> None:
    """Where nothing is in flight, the largest page is admitted, however low the limit: it would else be refused for ever."""
    admission = Admission(3)
    page = admission.admit() + admission.weigh(pb.ListBackupsRequest(page_size=1000))
    assert page == 3
    with pytest.raises(Overloaded):
        admission.admit()


async def test_quiet() -> None:
    """Quiet is when nothing has come for the window; it is waited for within a bound."""
    admission = Admission(1)
    admission.close()

    async def call_on() -> None:
        while True:
            with pytest.raises(ShuttingDown):
                admission.admit()
            await asyncio.sleep(0)

    async with asyncio.timeout(20):
        calling = asyncio.ensure_future(call_on())
        await admission.quiet(timedelta(milliseconds=1), within=timedelta(milliseconds=50))
        waiting = asyncio.ensure_future(admission.quiet(timedelta(milliseconds=20), within=timedelta(seconds=60)))
        await asyncio.sleep(0)
        calling.cancel()
        await waiting


async def test_more_than_is_admitted(start_server: StartServer, sql: Sql) -> None:
    """Beyond the limit RESOURCE_EXHAUSTED with pushback, at once; health checks are spared; later there is room again."""
    async with start_server(admission_limit=3) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        stub = pb.BackupServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            held = [asyncio.ensure_future(failure(stub.Get(pb.GetBackupRequest(backup_id="a")))) for _ in range(2)]
            await _until_in_flight(server, 2)

            answer = await failure(stub.List(pb.ListBackupsRequest(folder_id="f", page_size=1000)))  # one would fit, eleven do not
            assert (answer.code, answer.reason) == (StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert 500 <= int(answer.trailers["grpc-retry-pushback-ms"]) <= 1500
            held.append(asyncio.ensure_future(failure(stub.Get(pb.GetBackupRequest(backup_id="a")))))
            await _until_in_flight(server, 3)

            call: Any = channel.unary_unary("/yandex.cloud.mdb.greenplum.v1.BackupService/Get")
            assert (await failure(call(b"\xff"))).code is StatusCode.RESOURCE_EXHAUSTED  # before it is decoded
            assert (await health.Check(health_pb2.HealthCheckRequest())).status
        assert [answer.code for answer in await asyncio.gather(*held)] == [StatusCode.NOT_FOUND] * 3
        assert server.admission.in_flight == 0
        assert (await failure(stub.Get(pb.GetBackupRequest(backup_id="a")))).code is StatusCode.NOT_FOUND


async def test_every_end_makes_room(start_server: StartServer, sql: Sql) -> None:
    """Calls that are cancelled, run out of time, or are refused give back what they took."""
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


async def _until_in_flight(server: Server, weight: int) -> None:
    async with asyncio.timeout(10):
        while server.admission.in_flight != weight:
            await asyncio.sleep(0.005)
