"""Start and shutdown of a server process."""

import asyncio
import contextlib
import json
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import pb
from service.address import Address
from tests.support import processes
from tests.support.catalog import Sql
from tests.support.commands import RunCommand, environment
from tests.support.eventually import eventually
from tests.support.failures import failure
from tests.support.http2 import Connection, message
from tests.support.metrics import scrape_address, value_of
from tests.support.ports import free_ports
from tests.support.repository import ROOT
from tests.support.server import both_ways_to_accept

_WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"
_ACCEPTED_BY = {"poller": b"SERVER_CONNECT: incoming connection", "event engine": b"posix_engine_listener.cc"}
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Process:
    """A `serve` process and its log."""

    def __init__(self, process: processes.Process, address: Address) -> None:
        self.process, self.address = process, address
        self.channel = grpc.aio.insecure_channel(str(address))
        self.stub = pb.BackupServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)
        self._log: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reading = asyncio.ensure_future(self._read_log())

    async def _read_log(self) -> None:
        """Read continuously: a full pipe would block the server."""
        assert self.process.stderr
        async for line in self.process.stderr:
            self._log.put_nowait(json.loads(line))

    async def event(self, name: str) -> dict[str, Any]:
        """Return the next line of the log with this event."""
        return await eventually(self._log.get, lambda line: line["event"] == name, timeout_s=20, period_s=0)

    async def exit_status(self, within_s: float) -> int:
        """Wait until the process exits, and return its status."""
        return await asyncio.wait_for(self.process.wait(), within_s)


@contextlib.asynccontextmanager
async def serving(database_url: str, *, host: str = "127.0.0.1", **settings: str) -> AsyncIterator[Process]:
    """Run `serve` until the context is left; it is listening already."""
    address = Address(host, free_ports(1)[0])
    async with processes.running(
        *(sys.executable, "-m", "service", "serve"),
        cwd=ROOT,
        env=environment(**{"BACKUPS_DATABASE_URL": database_url, "BACKUPS_LISTEN": str(address)} | settings),
        stderr=subprocess.PIPE,
    ) as process:
        server = Process(process, address)
        try:
            await server.event("listening")
            yield server
        finally:
            await server.channel.close()
            process.kill()
            await server.reading


async def test_every_line_of_the_log_is_json(database_url: str) -> None:
    """Every line of the log is JSON: gRPC's core logs nothing about bad requests of clients."""
    async with serving(database_url, BACKUPS_DRAIN_DELAY="0") as server:
        async with Connection.to(server.address) as connection:
            stream = await connection.call("/grpc.health.v1.Health/Check", message(b""), timeout="abc")
            await connection.frames_of(stream)
        await server.stub.List(pb.ListBackupsRequest(folder_id="f"))
        server.process.send_signal(signal.SIGTERM)
        assert await server.exit_status(within_s=10) == 0


async def test_limit_of_descriptors_is_raised(database_url: str) -> None:
    """The server raises its soft limit of descriptors, so that connections up to their limit leave some for PostgreSQL and files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    command = (sys.executable, "-m", "service", "serve")
    settings = environment(BACKUPS_DATABASE_URL=database_url, BACKUPS_LISTEN="127.0.0.1:0")
    shell = ("/bin/sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh")
    async with processes.running(*shell, *command, cwd=ROOT, env=settings, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert "listening" in (await process.stderr.readline()).decode()
        assert psutil.Process(process.popen.pid).rlimit(psutil.RLIMIT_NOFILE)[0] == min(hard, 5000)
        process.kill()


def _accepted_by(line: bytes) -> str:
    """Return the name of the listener that logs an accepted connection in this line, or an empty text."""
    return next((name for name, text in _ACCEPTED_BY.items() if text in line), "")


@pytest.mark.parametrize(
    ("set_by_operator", "listener"),
    [({}, "poller"), ({"GRPC_EXPERIMENTS": ""}, "event engine"), ({"GRPC_EXPERIMENTS": "tcp_frame_size_tuning"}, "event engine")],
    ids=["unset", "empty", "another"],
)
async def test_experiments_of_grpc(database_url: str, set_by_operator: dict[str, str], listener: str) -> None:
    """gRPC's poller accepts connections, without the event engine's listener, unless the operator sets GRPC_EXPERIMENTS."""
    # Both listeners log the connections that they accept, with these tracers.
    variables = {"BACKUPS_LISTEN": "127.0.0.1:0", "GRPC_VERBOSITY": "INFO", "GRPC_TRACE": "tcp,event_engine_endpoint"} | set_by_operator
    env = environment(BACKUPS_DATABASE_URL=database_url, **variables)
    async with processes.running(sys.executable, "-m", "service", "serve", cwd=ROOT, env=env, stderr=subprocess.PIPE) as process:
        assert process.stderr
        line = await eventually(process.stderr.readline, lambda line: b'"listening"' in line, timeout_s=20, period_s=0)
        with socket.create_connection(json.loads(line)["address"].rsplit(":", 1)):
            line = await eventually(process.stderr.readline, _accepted_by, timeout_s=20, period_s=0)
        process.kill()
    assert _accepted_by(line) == listener


@both_ways_to_accept
async def test_calls_in_flight_finish(database_url: str, sql: Sql, concurrent_accept: str) -> None:
    """After SIGTERM the server reports NOT_SERVING, answers during the drain delay, finishes calls in flight, and exits with 0."""
    async with serving(database_url, BACKUPS_DRAIN_DELAY="0.5", BACKUPS_CONCURRENT_ACCEPT=concurrent_accept) as server:
        await server.event("serving")
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            held = [asyncio.ensure_future(failure(server.stub.Get(pb.GetBackupRequest(backup_id="a")))) for _ in range(5)]
            await eventually(lambda: sql.fetchval(_WAITING), lambda count: count >= 1)  # one query may answer all
            server.process.send_signal(signal.SIGTERM)
            await server.event("not serving")
            assert (await server.health.Check(health_pb2.HealthCheckRequest())).status == _NOT_SERVING
            # During the drain delay load balancers still send calls.
            held.append(asyncio.ensure_future(failure(server.stub.Get(pb.GetBackupRequest(backup_id="\0")))))
            assert (await held[-1]).code is StatusCode.NOT_FOUND
            # After it calls are rejected with a status that clients retry.
            error = await eventually(
                lambda: failure(server.stub.Get(pb.GetBackupRequest(backup_id="\0"))),
                lambda error: error.code is not StatusCode.NOT_FOUND,
            )
            assert (error.code, error.reason) == (StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert [error.code for error in await asyncio.gather(*held)] == [StatusCode.NOT_FOUND] * 6
        assert await server.exit_status(within_s=10) == 0


@both_ways_to_accept
async def test_never_cancelled(database_url: str, concurrent_accept: str) -> None:
    """Clients that call while the server stops receive OK or UNAVAILABLE, never CANCELLED, which clients do not retry."""
    async with serving(database_url, BACKUPS_DRAIN_DELAY="0.1", BACKUPS_CONCURRENT_ACCEPT=concurrent_accept) as server:
        await server.event("serving")
        codes: set[StatusCode] = set()
        stop = asyncio.Event()

        async def call_on() -> None:
            async with grpc.aio.insecure_channel(str(server.address), options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                stub = pb.BackupServiceStub(channel)
                while not stop.is_set():
                    codes.add(await stub.List(pb.ListBackupsRequest(folder_id="f"), timeout=20).code())

        async with asyncio.timeout(30), asyncio.TaskGroup() as callers:
            for _ in range(16):
                callers.create_task(call_on())
            await eventually(lambda: codes, lambda codes: StatusCode.OK in codes)
            server.process.send_signal(signal.SIGTERM)
            assert await server.process.wait() == 0
            stop.set()
        assert codes == {StatusCode.OK, StatusCode.UNAVAILABLE}


@both_ways_to_accept
async def test_calls_to_a_stopped_process(database_url: str, concurrent_accept: str) -> None:
    """Calls that arrive while the process gets no CPU during shutdown are UNAVAILABLE, or OK if it has just begun, never CANCELLED."""
    async with serving(database_url, BACKUPS_DRAIN_DELAY="0", BACKUPS_CONCURRENT_ACCEPT=concurrent_accept) as server:
        await server.event("serving")
        await server.stub.List(pb.ListBackupsRequest(folder_id="f"))
        server.process.send_signal(signal.SIGTERM)
        await server.event("not serving")
        server.process.send_signal(signal.SIGSTOP)
        calls = [server.stub.List(pb.ListBackupsRequest(folder_id="f"), timeout=20) for _ in range(50)]
        await asyncio.sleep(0.3)  # the fault itself: longer than the idle window
        server.process.send_signal(signal.SIGCONT)
        codes = {await call.code() for call in calls}
        assert codes - {StatusCode.OK} == {StatusCode.UNAVAILABLE}  # OK: it was stopped between the log and the rejection of calls
        assert await server.exit_status(within_s=10) == 0


async def test_second_signal_forces_shutdown(database_url: str, sql: Sql) -> None:
    """A second signal stops the server without waiting for calls in flight."""
    async with serving(database_url, BACKUPS_DRAIN_DELAY="60", BACKUPS_SHUTDOWN_GRACE="60", BACKUPS_REQUEST_TIMEOUT="60") as server:
        await server.event("serving")
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            held = asyncio.ensure_future(server.stub.Get(pb.GetBackupRequest(backup_id="a")).code())
            await eventually(lambda: sql.fetchval(_WAITING), lambda count: count >= 1)
            server.process.send_signal(signal.SIGTERM)
            await server.event("not serving")
            server.process.send_signal(signal.SIGTERM)
            assert await server.exit_status(within_s=20) == 0
        assert await held in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)


@pytest.mark.parametrize("peer", ["watcher", "stalled watcher", "half a call", "idle"])
async def test_clients_that_stay_connected(database_url: str, peer: str) -> None:
    """Clients that stay connected delay shutdown by the grace period at most."""
    async with serving(database_url, BACKUPS_DRAIN_DELAY="0", BACKUPS_SHUTDOWN_GRACE="1") as server:
        await server.event("serving")
        async with contextlib.AsyncExitStack() as stack:
            if peer == "watcher":
                await server.health.Watch(health_pb2.HealthCheckRequest()).read()
            else:
                settings = {4: 0} if peer == "stalled watcher" else None
                connection = await stack.enter_async_context(Connection.to(server.address, settings))
                if peer == "stalled watcher":
                    stream = await connection.call("/grpc.health.v1.Health/Watch", message(b""))
                    while (await connection.frame()).stream_id != stream:
                        pass
                elif peer == "half a call":
                    await connection.call("/yandex.cloud.mdb.greenplum.v1.BackupService/Get", None)
                else:
                    await connection.frame()
            server.process.send_signal(signal.SIGTERM)
            assert await server.exit_status(within_s=5) == 0


async def test_sigquit_stops_gracefully(database_url: str, sql: Sql) -> None:
    """SIGQUIT stops the server as SIGTERM does: calls in flight are answered, and the exit status is 0."""
    async with serving(database_url, BACKUPS_DRAIN_DELAY="0") as server:
        await server.event("serving")
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            held = asyncio.ensure_future(failure(server.stub.Get(pb.GetBackupRequest(backup_id="a"))))
            await eventually(lambda: sql.fetchval(_WAITING), lambda count: count >= 1)
            server.process.send_signal(signal.SIGQUIT)
            await server.event("not serving")
        assert (await held).code is StatusCode.NOT_FOUND
        assert await server.exit_status(within_s=10) == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
async def test_ignored_signals(database_url: str, number: signal.Signals) -> None:
    """Signals that neither stop nor reload anything leave the server running."""
    async with serving(database_url, BACKUPS_DRAIN_DELAY="0") as server:
        await server.event("serving")
        server.process.send_signal(number)
        for _ in range(10):
            await server.stub.List(pb.ListBackupsRequest(folder_id="f"))
        server.process.send_signal(signal.SIGTERM)
        assert await server.exit_status(within_s=10) == 0


async def test_starts_without_its_database(database_url: str, sql: Sql) -> None:
    """A server that started without a usable database serves as soon as the database is usable."""
    await sql.execute("ALTER TABLE alembic_version RENAME TO hidden")
    async with serving(database_url) as server:
        assert (await server.health.Check(health_pb2.HealthCheckRequest())).status == _NOT_SERVING
        await sql.execute("ALTER TABLE hidden RENAME TO alembic_version")
        await server.event("serving")
        assert await server.stub.List(pb.ListBackupsRequest(folder_id="f")) == pb.ListBackupsResponse()


async def test_connection_age(database_url: str) -> None:
    """Connections are closed gracefully at their maximum age, and calls continue over new connections without an error."""
    async with serving(database_url, BACKUPS_CONNECTION_MAX_AGE="0.3") as server:
        await server.event("serving")
        peers: set[str] = set()

        async def call() -> int:
            await server.stub.List(pb.ListBackupsRequest(folder_id="f"))
            peers.add((await server.event("call"))["peer"])
            return len(peers)

        await eventually(call, 3, timeout_s=20, period_s=0)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "example.org:1"])
async def test_anonymous_access_from_the_network_is_rejected(command: RunCommand, database_url: str, listen: str) -> None:
    """Without authentication the server listens on loopback addresses only, and names the settings that allow others."""
    done = await command("serve", BACKUPS_DATABASE_URL=database_url, BACKUPS_LISTEN=listen)
    assert done.status == 1
    assert "any client could read all backups: set BACKUPS_AUTH=jwt, or BACKUPS_ALLOW_ANONYMOUS=true" in done.stderr


async def test_authentication_needs_its_settings(command: RunCommand, database_url: str) -> None:
    """BACKUPS_AUTH=jwt without a setting that it requires fails with one line that names the setting."""
    done = await command("serve", BACKUPS_DATABASE_URL=database_url, BACKUPS_AUTH="jwt")
    assert (done.status, done.stderr) == (1, "backup-service: BACKUPS_AUTH=jwt needs BACKUPS_JWKS\n")


async def test_anonymous_access_from_the_network_is_allowed(database_url: str) -> None:
    """With BACKUPS_ALLOW_ANONYMOUS the server listens on any address."""
    async with serving(database_url, host="0.0.0.0", BACKUPS_ALLOW_ANONYMOUS="true", BACKUPS_DRAIN_DELAY="0") as server:
        await server.event("serving")
        server.process.send_signal(signal.SIGTERM)
        assert await server.exit_status(within_s=20) == 0


@contextlib.asynccontextmanager
async def _serving_unread(database_url: str) -> AsyncIterator[tuple[processes.Process, grpc.aio.Channel, Address]]:
    """Run `serve` with a pipe as its log that only the test reads, and yield the process, a channel, and the metrics' address."""
    port, metrics_port = free_ports(2)
    settings = {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_LISTEN": f"127.0.0.1:{port}", "BACKUPS_DRAIN_DELAY": "0"}
    settings["BACKUPS_METRICS_LISTEN"] = f"127.0.0.1:{metrics_port}"
    command = (sys.executable, "-m", "service", "serve")
    async with (
        processes.running(*command, cwd=ROOT, env=environment(**settings), stderr=subprocess.PIPE) as process,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield process, channel, Address("127.0.0.1", metrics_port)


async def _make_calls(channel: grpc.aio.Channel, count: int) -> None:
    """Make calls with long log lines, 50 at a time; each is answered."""
    stub: Any = pb.BackupServiceStub(channel)

    async def call() -> StatusCode:
        request, metadata = pb.GetBackupRequest(backup_id="\0"), [("x-client-request-id", "r" * 100)]
        return StatusCode(await stub.Get(request, metadata=metadata, timeout=20, wait_for_ready=True).code())

    for _ in range(count // 50):
        assert set(await asyncio.gather(*(call() for _ in range(50)))) == {StatusCode.NOT_FOUND}


async def test_a_log_that_is_never_read(database_url: str) -> None:
    """If a full pipe is never read, calls and health checks are answered, and SIGTERM stops the server with status 0."""
    async with _serving_unread(database_url) as (process, channel, _):
        await _make_calls(channel, 500)
        health: Any = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=20)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_a_log_that_is_read_late(database_url: str) -> None:
    """Lines that do not fit into the buffer are dropped and counted in a metric, and the log has their number once it is read."""
    async with _serving_unread(database_url) as (process, channel, metrics):

        async def dropped() -> float:
            return value_of(await scrape_address(str(metrics)), "backups_log_lines_dropped_total")

        await _make_calls(channel, 5000)
        assert await dropped() > 0
        assert process.stderr
        written = reported = 0
        while written + reported < 5000:
            line = json.loads(await process.stderr.readline())
            written += line["event"] == "call"
            reported += line["count"] if line["event"] == "log lines dropped" else 0
        assert await dropped() == reported
        process.send_signal(signal.SIGTERM)
        rest = [json.loads(line) async for line in process.stderr]
        assert rest[-1]["event"] == "stopped"
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert written + reported == 5000


async def test_a_log_that_cannot_be_written(database_url: str) -> None:
    """If the log cannot be written, its lines are lost, calls are answered, and the exit status is 0."""
    [port] = free_ports(1)
    settings = {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_LISTEN": f"127.0.0.1:{port}", "BACKUPS_DRAIN_DELAY": "0"}
    with Path("/dev/full").open("wb") as full:
        command = (sys.executable, "-m", "service", "serve")
        async with processes.running(*command, cwd=ROOT, env=environment(**settings), stderr=full) as process:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                request = pb.ListBackupsRequest(folder_id="f")
                call: Any = pb.BackupServiceStub(channel).List(request, timeout=20, wait_for_ready=True)
                assert await call.code() is StatusCode.OK
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0
