"""grpc.health.v1 and reflection: what probes and grpcurl ask."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service import pb
from service.api.health import LIVENESS, Health, keep_ready
from service.server import Server
from tests.support.answers import failure
from tests.support.catalog import Sql
from tests.support.http2 import Connection, message
from tests.support.server import StartServer

_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
_SETTINGS_INITIAL_WINDOW_SIZE = 4


async def _until(health: Any, status: int, service: str = "") -> None:
    """Waits for a status, as a watcher is told it."""
    async with asyncio.timeout(20):
        async for answer in health.Watch(health_pb2.HealthCheckRequest(service=service)):
            if answer.status == status:
                return


@pytest.fixture(name="health")
def _health(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", pb.BACKUP_SERVICE, pb.CLUSTER_SERVICE])
async def test_serving(health: Any, service: str) -> None:
    """With a migrated database the server is SERVING, as a whole and by the service's name."""
    await _until(health, _SERVING, service)
    assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == _SERVING


async def test_unknown_service(health: Any) -> None:
    """Check of a service that there is not is NOT_FOUND; Watch says SERVICE_UNKNOWN and stays, as the protocol asks."""
    assert (await failure(health.Check(health_pb2.HealthCheckRequest(service="x" * 10_000)))).code is StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="x"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_follows_the_database(start_server: StartServer, empty_database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Not serving while there is no schema, or only an older one, which the log says; serving once there is, also a newer one; and back."""
    sql = await asyncpg.connect(empty_database_url)
    async with start_server(database_url=empty_database_url) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == _NOT_SERVING
        await sql.execute("CREATE TABLE alembic_version (version_num varchar(32)); INSERT INTO alembic_version VALUES ('9999')")
        await _until(health, _SERVING)
        await sql.execute("UPDATE alembic_version SET version_num = '0000'")
        await _until(health, _NOT_SERVING)
    await sql.close()
    assert "the schema is older than this release needs" in capsys.readouterr().err


async def test_a_process_that_stood_still() -> None:
    """A process that got no CPU reads the answer that has come meanwhile, before it takes the database for silent."""
    loop, asked = asyncio.get_running_loop(), asyncio.Semaphore(0)
    said: list[bool] = []

    class Said(Health):
        def set(self, *, serving: bool) -> None:
            said.append(serving)

    def stand_still() -> None:
        theirs.send(b"1")
        time.sleep(0.3)

    async def why_not_ready() -> None:
        loop.call_soon(stand_still)  # while the answer is waited for
        await loop.sock_recv(ours, 1)
        for _ in range(5):  # turns of the loop until a query's answer is known here
            await asyncio.sleep(0)
        asked.release()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        ready = asyncio.ensure_future(keep_ready(Said(), why_not_ready, period=timedelta(seconds=0.1), within=timedelta(seconds=10)))
        for _ in range(3):
            await asked.acquire()
        ready.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ready
    assert set(said) == {True}


async def test_liveness_does_not_follow_the_database(start_server: StartServer, empty_database_url: str) -> None:
    """A process that answers is alive, whether its database is there or not; on the listener for probes as well."""
    async with start_server(database_url=empty_database_url, health_listen="127.0.0.1:0") as server:
        for address in (server.address, server.health_address):
            async with grpc.aio.insecure_channel(str(address)) as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                assert (await health.Check(health_pb2.HealthCheckRequest())).status == _NOT_SERVING
                assert (await health.Check(health_pb2.HealthCheckRequest(service=LIVENESS))).status == _SERVING


async def test_watchers_are_told_when_the_server_stops(start_server: StartServer) -> None:
    """A watcher is told NOT_SERVING, and its call ends, at once: the server does not wait its grace for it."""
    async with start_server(shutdown_grace="30") as server:
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            await _until(health, _SERVING)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == _SERVING
            async with asyncio.timeout(10):
                await server.stop()
                assert (await watch.read()).status == _NOT_SERVING
                assert await watch.read() is grpc.aio.EOF


async def test_a_stalled_watcher_holds_nobody(start_server: StartServer) -> None:
    """A watcher that reads nothing freezes neither what others are told, nor the readiness itself, nor the end of the server."""
    async with start_server(shutdown_grace="0.5") as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        await _until(health, _SERVING)
        async with Connection.to(server.address, {_SETTINGS_INITIAL_WINDOW_SIZE: 0}) as stalled:
            stream = await stalled.call("/grpc.health.v1.Health/Watch", message(b""))
            frame = await stalled.frame()
            while frame.stream_id != stream:
                frame = await stalled.frame()

            server.health.set(serving=False)
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == _NOT_SERVING
            await _until(health, _SERVING)  # the readiness loop goes on
            async with asyncio.timeout(5):
                await server.stop()


async def test_too_many_watchers(server: Server, channel: grpc.aio.Channel, health: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watchers are bounded: each holds memory for as long as it likes; one that leaves makes room."""
    monkeypatch.setattr("service.api.health._MAX_WATCHERS", 2)
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
    for watch in watches:
        await watch.read()

    async def third() -> None:
        async for _ in health.Watch(health_pb2.HealthCheckRequest()):
            return

    assert (await failure(third())).code is StatusCode.RESOURCE_EXHAUSTED
    watches[0].cancel()
    async with asyncio.timeout(10):
        while server.health._watchers > 1:
            await asyncio.sleep(0.01)
    await third()
    watches[1].cancel()


async def test_once_closed_never_serving() -> None:
    """A readiness check that ends after the server began to stop does not make it serve again."""
    health = Health()
    health.set(serving=True)
    health.close()
    health.set(serving=True)
    answer = await health.Check(health_pb2.HealthCheckRequest(), None)  # type: ignore[arg-type]
    assert answer.status == _NOT_SERVING


async def _reflect(channel: Any, **request: Any) -> Any:
    async def requests() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(**request)

    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    [answer] = [answer async for answer in stub.ServerReflectionInfo(requests())]
    return answer


async def test_reflection(channel: grpc.aio.Channel) -> None:
    """Reflection names the services, and gives the files that describe them."""
    answer = await _reflect(channel, list_services="")
    assert {service.name for service in answer.list_services_response.service} == {
        pb.BACKUP_SERVICE, pb.CLUSTER_SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
    }  # fmt: skip
    answer = await _reflect(channel, file_containing_symbol=pb.BACKUP_SERVICE)
    assert pb.DESCRIPTOR.serialized_pb in answer.file_descriptor_response.file_descriptor_proto


async def test_reflection_that_is_left_open(start_server: StartServer) -> None:
    """A stream whose client asks nothing ends as any other call does, and gives back its room among the calls in flight."""
    async with start_server(request_timeout="0.5") as server:
        channel: Any = grpc.aio.insecure_channel(str(server.address))
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        async with channel, asyncio.timeout(10):
            assert (await failure(stub.ServerReflectionInfo().read())).code is StatusCode.DEADLINE_EXCEEDED
            while server.admission.in_flight:
                await asyncio.sleep(0.01)


async def test_reflection_is_off_unless_asked_for(start_server: StartServer) -> None:
    """Without the setting there is no reflection."""
    async with start_server(reflection=None) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _reflect(channel, list_services="")
        assert caught.value.code() is StatusCode.UNIMPLEMENTED


async def test_whatever_goes_wrong_may_be_mended(start_server: StartServer, sql: Sql) -> None:
    """An error that nobody foresaw ends readiness, and not the looking: here, a role that may not read what says the revision."""
    async with start_server() as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        await _until(health, _SERVING)
        await sql.execute("REVOKE SELECT ON alembic_version FROM backups_service")
        await _until(health, _NOT_SERVING)
        await sql.execute("GRANT SELECT ON alembic_version TO backups_service")
        await _until(health, _SERVING)


async def test_busy_is_not_ill(start_server: StartServer, sql: Sql) -> None:
    """While every connection of calls is taken, and more calls wait, the server goes on seeing its database, and is SERVING."""
    async with start_server(pool_size=1) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        await _until(health_pb2_grpc.HealthStub(channel), _SERVING)
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            stub = pb.BackupServiceStub(channel)
            calls = [asyncio.ensure_future(failure(stub.Get(pb.GetBackupRequest(backup_id="a")))) for _ in range(5)]
            async with asyncio.timeout(20):
                while await sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < 1:
                    await asyncio.sleep(0.01)
                for _ in range(2):
                    seen_at = server._database_seen_at
                    while server._database_seen_at == seen_at:
                        await asyncio.sleep(0.01)
                        assert server.health.serving
        assert {answer.code for answer in await asyncio.gather(*calls)} == {StatusCode.NOT_FOUND}


async def test_list(health: Any) -> None:
    """List returns the status of every service that Check knows."""
    await _until(health, _SERVING)
    answer = await health.List(health_pb2.HealthListRequest())  # type: ignore[attr-defined]  # the stubs are older than the method
    statuses = {name: response.status for name, response in answer.statuses.items()}
    assert statuses == {name: (await health.Check(health_pb2.HealthCheckRequest(service=name))).status for name in statuses}
    assert statuses.keys() == {"", pb.BACKUP_SERVICE, pb.CLUSTER_SERVICE, LIVENESS}
