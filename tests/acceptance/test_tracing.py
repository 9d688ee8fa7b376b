"""Traces: what a collector receives, and that neither its absence nor a client's headers do harm."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from service import pb
from tests.support.catalog import AddBackups, Sql
from tests.support.commands import environment
from tests.support.deployment import ReplicaProcess
from tests.support.ports import free_ports
from tests.support.repository import ROOT
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

_TRACE, _PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
_TRACEPARENT = ("traceparent", f"00-{_TRACE}-{_PARENT}-01")
_SERVICE = "yandex.cloud.mdb.greenplum.v1.BackupService"

_UNSAMPLED = ("traceparent", f"00-{_TRACE}-{_PARENT}-00")

StartTraced = Callable[..., AbstractAsyncContextManager[tuple[ReplicaProcess, grpc.aio.Channel]]]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives spans by OTLP."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.address = ""

    async def Export(  # noqa: N802  # the contract's name
        self, request: Any, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        return [span for request in self.requests for of in request.resource_spans for scope in of.scope_spans for span in scope.spans]


def _attributes(of: Any) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in of.attributes}


@pytest.fixture(name="collector")
async def _collector() -> AsyncIterator[Collector]:
    server = grpc.aio.server()
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield collector
    await server.stop(None)


async def _event(replica: ReplicaProcess, name: str) -> dict[str, Any]:
    """Waits for a line of the log."""
    async with asyncio.timeout(30):
        while not (found := [line for line in replica.log() if line["event"] == name]):
            await asyncio.sleep(0.05)
    return found[0]


@pytest.fixture(name="start_traced")
def _start_traced(database_url: str, tmp_path: Path) -> StartTraced:
    """Starts a `serve` which sends what it has only when it ends, unless variables say otherwise."""

    @asynccontextmanager
    async def start(**variables: str) -> AsyncIterator[tuple[ReplicaProcess, grpc.aio.Channel]]:
        [port] = free_ports(1)
        settings = {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_DRAIN_DELAY": "0", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        replica = ReplicaProcess(port, settings | variables, tmp_path / "log")
        async with replica.running(), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await replica.serving()
            yield replica, channel

    return start


@pytest.fixture(name="issuer", scope="module")
def _issuer() -> Issuer:
    return Issuer("k1")


@pytest.fixture(name="jwt")
def _jwt(issuer: Issuer, tmp_path: Path) -> dict[str, str]:
    """Settings with which callers need a token of the issuer."""
    jwks = tmp_path / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    return {"BACKUPS_AUTH": "jwt", "BACKUPS_JWKS": str(jwks), "BACKUPS_JWT_ISSUER": ISSUER, "BACKUPS_JWT_AUDIENCE": AUDIENCE}


def _bearer(issuer: Issuer) -> tuple[str, str]:
    return "authorization", f"Bearer {issuer.token('k1', folders='*')}"


async def _ends(replica: ReplicaProcess, *, within: float = 10) -> None:
    assert await asyncio.wait_for(replica.stop(signal.SIGTERM), within) == 0


async def test_spans_of_a_call(
    start_traced: StartTraced, collector: Collector, add_backups: AddBackups, issuer: Issuer, jwt: dict[str, str]
) -> None:
    """A call and its query are spans of the authenticated caller's trace, which the log names; they are sent at shutdown at the latest."""
    [backup] = await add_backups(1)
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}", **jwt) as (replica, channel):
        stub: Any = pb.BackupServiceStub(channel)
        metadata = [_TRACEPARENT, ("x-request-id", "mine"), _bearer(issuer)]
        await stub.Get(pb.GetBackupRequest(backup_id=backup.id), metadata=metadata)
        line = await _event(replica, "call")
        await _ends(replica)

    query, call = collector.spans
    assert (call.name, call.kind) == (f"{_SERVICE}/Get", Span.SPAN_KIND_SERVER)
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (_TRACE, _PARENT)
    assert _attributes(call) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{_SERVICE}/Get",
        "rpc.response.status_code": "OK",
        "backups.request_id": "mine",
    }
    assert call.status.code == Status.STATUS_CODE_UNSET
    assert (query.name, query.kind) == ("SELECT backups", Span.SPAN_KIND_CLIENT)
    assert (query.trace_id.hex(), query.parent_span_id) == (_TRACE, call.span_id)
    assert _attributes(query) | {"db.namespace": ""} == {
        "db.system.name": "postgresql",
        "db.namespace": "",
        "db.operation.name": "SELECT",
        "db.collection.name": "backups",
        "db.query.summary": "SELECT backups",
        "db.query.text": "SELECT folder_id, wire FROM backups WHERE id = $1",
    }
    assert _attributes(query)["db.namespace"].startswith("test_")
    assert [event.name for event in query.events] == ["connected"]
    assert call.start_time_unix_nano <= query.start_time_unix_nano <= query.end_time_unix_nano <= call.end_time_unix_nano
    assert line["trace_id"] == _TRACE
    assert _attributes(collector.requests[0].resource_spans[0].resource)["service.name"] == "greenplum-backup-service"
    assert backup.id not in str(collector.requests)


async def test_what_fails(start_traced: StartTraced, collector: Collector, sql: Sql) -> None:
    """A client's mistake is no error of the server's span; a database's is one, of both spans, by type and without its text."""
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}") as (replica, channel):
        stub = pb.BackupServiceStub(channel)
        assert await stub.Get(pb.GetBackupRequest(backup_id="none")).code() is StatusCode.NOT_FOUND
        await sql.execute("ALTER TABLE backups RENAME TO hidden")
        assert await stub.Get(pb.GetBackupRequest(backup_id="none")).code() is StatusCode.UNAVAILABLE
        await _ends(replica)

    found, absent, failed, unavailable = collector.spans
    assert [span.status.code for span in (found, absent)] == [Status.STATUS_CODE_UNSET] * 2
    assert _attributes(absent)["rpc.response.status_code"] == "NOT_FOUND"
    assert [(span.status.code, span.status.message) for span in (failed, unavailable)] == [(Status.STATUS_CODE_ERROR, "")] * 2
    assert _attributes(failed)["error.type"] == "asyncpg.exceptions.UndefinedTableError"
    assert _attributes(failed)["db.response.status_code"] == "42P01"
    assert _attributes(unavailable)["error.type"] == "UNAVAILABLE"
    assert "does not exist" not in str(collector.requests)


async def test_what_is_not_traced(start_traced: StartTraced, collector: Collector, issuer: Issuer, jwt: dict[str, str]) -> None:
    """Health checks, the readiness check's queries, rejected tokens and calls of traces that are not sampled make no spans."""
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}", **jwt) as (replica, channel):
        health: Any = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest())
        stub: Any = pb.BackupServiceStub(channel)
        await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[_UNSAMPLED, _bearer(issuer)])
        assert await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[_TRACEPARENT]).code() is StatusCode.UNAUTHENTICATED
        await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[_bearer(issuer)])
        await _ends(replica)
    assert [span.name for span in collector.spans] == ["SELECT backups", f"{_SERVICE}/List"]


@pytest.mark.parametrize(("ratio", "traceparent"), [(0, _TRACEPARENT), (1, _UNSAMPLED)])
async def test_anonymous_callers_do_not_decide_what_is_sampled(
    start_traced: StartTraced, collector: Collector, ratio: int, traceparent: tuple[str, str]
) -> None:
    """The sampler alone decides for an unauthenticated caller, not the caller's sampled flag; the caller's trace is linked."""
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(ratio)}
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}", **sampler) as (replica, channel):
        stub: Any = pb.BackupServiceStub(channel)
        await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[traceparent])
        await _ends(replica)
    calls = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert len(calls) == ratio
    for call in calls:
        assert (call.trace_id.hex() == _TRACE, call.parent_span_id) == (False, b"")
        assert [(link.trace_id.hex(), link.span_id.hex()) for link in call.links] == [(_TRACE, _PARENT)]


async def test_headers_that_are_none(start_traced: StartTraced, collector: Collector, issuer: Issuer, jwt: dict[str, str]) -> None:
    """A traceparent that is none begins a trace of its own; tracestate and baggage are not taken over."""
    bad = [
        "",
        "hunter2",
        f"ff-{_TRACE}-{_PARENT}-01",
        f"00-{'0' * 32}-{_PARENT}-01",
        f"00-{_TRACE}-{'0' * 16}-01",
        f"00-{_TRACE}-{_PARENT}-01" * 100,
    ]
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}", **jwt) as (replica, channel):
        stub: Any = pb.BackupServiceStub(channel)
        for traceparent in (*bad, _TRACEPARENT[1]):
            metadata = [("traceparent", traceparent), ("tracestate", "hunter2=hunter2"), ("baggage", "hunter2=hunter2"), _bearer(issuer)]
            await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=metadata)
        await _ends(replica)
    *calls, good = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert len(calls) == len(bad)
    assert all(call.trace_id.hex() != _TRACE and not call.parent_span_id for call in calls)
    assert good.trace_id.hex() == _TRACE
    assert "hunter2" not in str(collector.requests)


async def test_names_of_the_operators_choice(start_traced: StartTraced, collector: Collector, issuer: Issuer, jwt: dict[str, str]) -> None:
    """OpenTelemetry's own variables say what the service is called, and what is sampled."""
    variables = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SERVICE_NAME": "ours", "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}", **variables, **jwt) as (replica, channel):
        stub: Any = pb.BackupServiceStub(channel)
        await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[_bearer(issuer)])
        await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[_TRACEPARENT, _bearer(issuer)])
        await _ends(replica)
    assert [span.trace_id.hex() for span in collector.spans] == [_TRACE, _TRACE]
    assert _attributes(collector.requests[0].resource_spans[0].resource)["service.name"] == "ours"


@pytest.mark.parametrize("collector_is", ["not there", "silent"])
async def test_a_dead_collector(start_traced: StartTraced, collector_is: str) -> None:
    """Where no collector answers, calls do, and the end comes in time."""
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if collector_is == "silent":
            dead.listen()
        address = f"http://127.0.0.1:{dead.getsockname()[1]}"
        batches = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BSP_MAX_QUEUE_SIZE": "20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10"}
        async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=address, **batches) as (replica, channel):
            stub = pb.BackupServiceStub(channel)
            for _ in range(100):  # more spans than the queue holds
                assert await stub.List(pb.ListBackupsRequest(folder_id="f"), timeout=20).code() is StatusCode.OK
            await _ends(replica, within=8)
        assert "stopped" in {line["event"] for line in replica.log()}


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER must be otlp"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "OTEL_EXPORTER_OTLP_PROTOCOL must be grpc"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OpenTelemetry cannot use a variable OTEL_... (ValueError)"),
        ({"PYTHONPATH": "without"}, "OpenTelemetry is not installed: see requirements/production.txt"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_what_cannot_be_had(start_traced: StartTraced, tmp_path: Path, variables: dict[str, str], problem: str) -> None:
    """Traces that are asked for and cannot be had are one clear line at the start, and the service serves."""
    if "PYTHONPATH" in variables:  # what Python finds, and says, where there is no such package
        (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError(\"No module named 'opentelemetry'\")", encoding="utf-8")
        variables = {"PYTHONPATH": str(tmp_path)}
    async with start_traced(**{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"} | variables) as (replica, channel):
        assert await pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="f")).code() is StatusCode.OK
        [line] = [line for line in replica.log() if line["event"] == "no traces"]
        assert (line["level"], problem in line["problem"]) == ("warning", True), line
        assert "trace_id" not in await _event(replica, "call")


_IMPORTED = """
import asyncio, sys
from service.composition import build_server
from service.settings import Settings

async def live():
    server = await build_server(Settings.read())
    await (await server.start()).shutdown()

asyncio.run(live())
print([name for name in sys.modules if name == "service.observability.tracing" or name.split(".")[0] == "opentelemetry"])
"""


@pytest.mark.parametrize(
    ("variables", "imported"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
async def test_off_is_not_imported(database_url: str, variables: dict[str, str], imported: bool) -> None:
    """If tracing is off, OpenTelemetry is not imported."""
    settings = {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_LISTEN": "127.0.0.1:0", "BACKUPS_DRAIN_DELAY": "0"}
    command = [sys.executable, "-c", _IMPORTED]
    done = subprocess.run(command, cwd=ROOT, env=environment(**settings, **variables), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.splitlines()[-1] != "[]") is imported, done.stdout
