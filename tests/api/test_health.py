"""grpc.health.v1 and reflection."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from service import pb
from service.api.health import LIVENESS, Health
from service.api.readiness import NotReady
from service.server import Server
from tests.support.catalog import AddBackups, Sql
from tests.support.eventually import eventually
from tests.support.failures import failure
from tests.support.http2 import Connection, message
from tests.support.reflection import reflect
from tests.support.server import StartServer

_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
_SETTINGS_INITIAL_WINDOW_SIZE = 4


async def _until(health: Any, status: int, service: str = "") -> None:
    """Read the updates of Watch until one has the status."""
    async with asyncio.timeout(20):
        async for response in health.Watch(health_pb2.HealthCheckRequest(service=service)):
            if response.status == status:
                return


@pytest.fixture(name="health")
def _health(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", pb.BACKUP_SERVICE, pb.CLUSTER_SERVICE])
async def test_serving(health: Any, service: str) -> None:
    """With a migrated database the server is SERVING, as a whole and for each service by name."""
    await _until(health, _SERVING, service)
    assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == _SERVING


async def test_list(health: Any, server: Server) -> None:
    """List returns the status of each service that Check knows."""
    await eventually(lambda: server.health.serving, expected=True)
    listed = await health.List(health_pb2.HealthListRequest())  # type: ignore[attr-defined]  # the stubs are older than the method
    assert {name: response.status for name, response in listed.statuses.items()} == dict.fromkeys(
        ("", pb.BACKUP_SERVICE, pb.CLUSTER_SERVICE, LIVENESS), _SERVING
    )


async def test_unknown_service(health: Any) -> None:
    """Check of an unknown service is NOT_FOUND; Watch returns SERVICE_UNKNOWN and stays open, as the protocol requires."""
    assert (await failure(health.Check(health_pb2.HealthCheckRequest(service="x" * 10_000)))).code is StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="x"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_follows_the_schema(start_server: StartServer, sql: Sql, capsys: pytest.CaptureFixture[str]) -> None:
    """The server is NOT_SERVING while the schema is missing or too old, with the reason in the log, and SERVING on a newer schema."""
    await sql.execute("ALTER TABLE alembic_version RENAME TO absent")
    async with start_server() as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == _NOT_SERVING
        await eventually(lambda: server.readiness.reason, NotReady.CATALOG_UNAVAILABLE)
        await sql.execute("ALTER TABLE absent RENAME TO alembic_version")
        await sql.execute("UPDATE alembic_version SET version_num = '9999'")
        await _until(health, _SERVING)
        await sql.execute("UPDATE alembic_version SET version_num = '0000'")
        await _until(health, _NOT_SERVING)
        assert server.readiness.reason is NotReady.SCHEMA_TOO_OLD
    assert NotReady.SCHEMA_TOO_OLD in capsys.readouterr().err


async def test_liveness_does_not_follow_the_database(start_server: StartServer, empty_database_url: str) -> None:
    """Liveness is SERVING with or without a database, on both listeners."""
    async with start_server(database_url=empty_database_url, health_listen="127.0.0.1:0") as server:
        for address in (server.address, server.health_address):
            async with grpc.aio.insecure_channel(str(address)) as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                assert (await health.Check(health_pb2.HealthCheckRequest())).status == _NOT_SERVING
                assert (await health.Check(health_pb2.HealthCheckRequest(service=LIVENESS))).status == _SERVING


async def test_watch_at_shutdown(start_server: StartServer) -> None:
    """At shutdown a watcher receives NOT_SERVING and its call closes immediately, without the grace period."""
    async with start_server(shutdown_grace="30") as server:
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            await _until(health, _SERVING)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == _SERVING
            async with asyncio.timeout(10):
                await server.shutdown()
                assert (await watch.read()).status == _NOT_SERVING
                assert await watch.read() is grpc.aio.EOF


async def test_stalled_watcher(start_server: StartServer) -> None:
    """A watcher that does not read blocks neither other watchers, nor the readiness loop, nor shutdown."""
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
            await _until(health, _SERVING)  # the readiness loop still runs
            async with asyncio.timeout(5):
                await server.shutdown()


async def test_too_many_watchers(server: Server, channel: grpc.aio.Channel, health: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of watchers is limited, because each uses memory for an unlimited time; a call that ends makes room for another."""
    monkeypatch.setattr("service.api.health._MAX_WATCHERS", 2)
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
    for watch in watches:
        await watch.read()

    async def third() -> None:
        async for _ in health.Watch(health_pb2.HealthCheckRequest()):
            return

    assert (await failure(third())).code is StatusCode.RESOURCE_EXHAUSTED
    watches[0].cancel()
    await eventually(lambda: server.health.watchers, lambda count: count <= 1)
    await third()
    watches[1].cancel()


async def test_not_serving_after_close() -> None:
    """A readiness check that finishes during shutdown does not set the status to SERVING again."""
    health = Health()
    health.set(serving=True)
    health.close()
    health.set(serving=True)
    response = await health.Check(health_pb2.HealthCheckRequest(), None)  # type: ignore[arg-type]
    assert response.status == _NOT_SERVING


async def test_reflection(channel: grpc.aio.Channel) -> None:
    """Reflection lists the services and returns their descriptors."""
    response = await reflect(channel, list_services="")
    assert {service.name for service in response.list_services_response.service} == {
        pb.BACKUP_SERVICE, pb.CLUSTER_SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
    }  # fmt: skip
    response = await reflect(channel, file_containing_symbol=pb.BACKUP_SERVICE)
    assert pb.DESCRIPTOR.serialized_pb in response.file_descriptor_response.file_descriptor_proto


async def test_idle_reflection_stream(start_server: StartServer) -> None:
    """A stream without requests ends at the request timeout and releases its cost."""
    async with start_server(request_timeout="0.5") as server:
        channel: Any = grpc.aio.insecure_channel(str(server.address))
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        async with channel, asyncio.timeout(10):
            assert (await failure(stub.ServerReflectionInfo().read())).code is StatusCode.DEADLINE_EXCEEDED
            await eventually(lambda: server.admission.in_flight, 0)


async def test_reflection_is_off_by_default(start_server: StartServer) -> None:
    """Without the setting, reflection is UNIMPLEMENTED."""
    async with start_server(reflection=None) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reflect(channel, list_services="")
        assert caught.value.code() is StatusCode.UNIMPLEMENTED


async def test_recovers_from_an_unexpected_error(start_server: StartServer, sql: Sql) -> None:
    """An unexpected error, such as a missing privilege, makes the server NOT_SERVING until a later check succeeds."""
    async with start_server() as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        await _until(health, _SERVING)
        await sql.execute("REVOKE SELECT ON alembic_version FROM backups_service")
        await _until(health, _NOT_SERVING)
        await sql.execute("GRANT SELECT ON alembic_version TO backups_service")
        await _until(health, _SERVING)


async def test_overload_does_not_affect_readiness(start_server: StartServer, add_backups: AddBackups, sql: Sql, database_name: str) -> None:
    """While every connection of calls is in use and more calls wait, the readiness checks succeed and the server is SERVING."""
    await add_backups(id="slow")
    # A query that reads this row waits for a lock. A sequential scan, which PostgreSQL 15 chooses for a single row, would always read it.
    await sql.execute(f"ALTER DATABASE {database_name} SET enable_seqscan = off")
    await sql.execute("CREATE POLICY slow ON backups USING (id <> 'slow' OR pg_advisory_xact_lock_shared(1) IS NOT NULL)")
    await sql.execute("ALTER TABLE backups ENABLE ROW LEVEL SECURITY")
    async with start_server(pool_size=1) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        await _until(health_pb2_grpc.HealthStub(channel), _SERVING)
        await sql.execute("SELECT pg_advisory_lock(1)")
        stub = pb.BackupServiceStub(channel)
        calls = [asyncio.ensure_future(_id(stub)) for _ in range(5)]
        await eventually(lambda: sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"), 1)
        for _ in range(2):
            succeeded_at = server.readiness.succeeded_at
            await eventually(lambda: server.readiness.succeeded_at, lambda at, before=succeeded_at: at > before)
            assert server.health.serving
        assert await sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") == 1
        await sql.execute("SELECT pg_advisory_unlock(1)")
        assert await asyncio.gather(*calls) == ["slow"] * 5


async def test_table_lock_does_not_affect_readiness(start_server: StartServer, sql: Sql) -> None:
    """While a transaction holds the table exclusively, as a step of a migration does, the server stays SERVING."""
    async with start_server() as server:
        await eventually(lambda: server.health.serving, expected=True)
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            for _ in range(2):
                succeeded_at = server.readiness.succeeded_at
                await eventually(lambda: server.readiness.succeeded_at, lambda at, before=succeeded_at: at > before)
                assert server.health.serving


async def _id(stub: pb.BackupServiceStub) -> str:
    return (await stub.Get(pb.GetBackupRequest(backup_id="slow"))).id
