"""Traces that a collector receives, and tracing with a missing collector or hostile headers."""

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
from service.postgres.catalog import BACKUPS
from tests.support.catalog import AddBackups, Sql
from tests.support.commands import environment
from tests.support.deployment import ReplicaProcess
from tests.support.eventually import eventually
from tests.support.metrics import scrape_address, value_of
from tests.support.ports import free_ports
from tests.support.repository import ROOT
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

_TRACE, _PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
_TRACEPARENT = ("traceparent", f"00-{_TRACE}-{_PARENT}-01")
_SERVICE = "yandex.cloud.mdb.greenplum.v1.BackupService"

_UNSAMPLED = ("traceparent", f"00-{_TRACE}-{_PARENT}-00")

StartTraced = Callable[..., AbstractAsyncContextManager[tuple[ReplicaProcess, grpc.aio.Channel]]]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP collector that keeps the spans that it receives."""

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
    """Wait for an event in the log, and return its first line."""
    lines = await eventually(lambda: [line for line in replica.log() if line["event"] == name], bool, timeout_s=30, period_s=0.05)
    return lines[0]


@pytest.fixture(name="start_traced")
def _start_traced(database_url: str, tmp_path: Path) -> StartTraced:
    """Return a function that starts `serve`, which sends its spans at shutdown unless the variables change that."""

    @asynccontextmanager
    async def start(**variables: str) -> AsyncIterator[tuple[ReplicaProcess, grpc.aio.Channel]]:
        [port] = free_ports(1)
        settings = {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_DRAIN_DELAY": "0", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        replica = ReplicaProcess(port, settings | variables, tmp_path / "log")
        async with replica.running(), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await replica.serving()
            yield replica, channel

    return start


@pytest.fixture(name="issuer", scope="session")
def _issuer() -> Issuer:
    return Issuer("k1")


@pytest.fixture(name="jwt")
def _jwt(issuer: Issuer, tmp_path: Path) -> dict[str, str]:
    """Return settings that require a token of the issuer."""
    jwks = tmp_path / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    return {"BACKUPS_AUTH": "jwt", "BACKUPS_JWKS": str(jwks), "BACKUPS_JWT_ISSUER": ISSUER, "BACKUPS_JWT_AUDIENCE": AUDIENCE}


def _bearer(issuer: Issuer) -> tuple[str, str]:
    return "authorization", f"Bearer {issuer.token('k1', folders='*')}"


async def _stop(replica: ReplicaProcess, *, within: float = 10) -> None:
    assert await asyncio.wait_for(replica.stop(signal.SIGTERM), within) == 0


async def test_spans_of_a_call(
    start_traced: StartTraced, collector: Collector, add_backups: AddBackups, issuer: Issuer, jwt: dict[str, str]
) -> None:
    """A call and its query are spans of the authenticated caller's trace; the log has the trace id, and shutdown sends the spans."""
    [backup] = await add_backups(1)
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}", **jwt) as (replica, channel):
        stub: Any = pb.BackupServiceStub(channel)
        metadata = [_TRACEPARENT, ("x-request-id", "mine"), _bearer(issuer)]
        await stub.Get(pb.GetBackupRequest(backup_id=backup.id), metadata=metadata)
        line = await _event(replica, "call")
        await _stop(replica)

    query, call = collector.spans
    _check_span_of_call(call)
    _check_span_of_query(query, call)
    assert line["trace_id"] == _TRACE
    assert _attributes(collector.requests[0].resource_spans[0].resource)["service.name"] == "greenplum-backup-service"
    assert backup.id not in str(collector.requests)


def _check_span_of_call(call: Span) -> None:
    assert (call.name, call.kind) == (f"{_SERVICE}/Get", Span.SPAN_KIND_SERVER)
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (_TRACE, _PARENT)
    assert _attributes(call) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{_SERVICE}/Get",
        "rpc.response.status_code": "OK",
        "backups.request_id": "mine",
    }
    assert call.status.code == Status.STATUS_CODE_UNSET


def _check_span_of_query(query: Span, call: Span) -> None:
    assert (query.name, query.kind) == ("SELECT backups", Span.SPAN_KIND_CLIENT)
    assert (query.trace_id.hex(), query.parent_span_id) == (_TRACE, call.span_id)
    assert _attributes(query) | {"db.namespace": ""} == {
        "db.system.name": "postgresql",
        "db.namespace": "",
        "db.operation.name": "SELECT",
        "db.collection.name": "backups",
        "db.query.summary": "SELECT backups",
        "db.query.text": BACKUPS,
    }
    assert _attributes(query)["db.namespace"].startswith("test_")
    assert [event.name for event in query.events] == ["connected"]
    assert call.start_time_unix_nano <= query.start_time_unix_nano <= query.end_time_unix_nano <= call.end_time_unix_nano


async def test_spans_of_failed_calls(start_traced: StartTraced, collector: Collector, sql: Sql) -> None:
    """A client's error does not mark the span as failed; a database error marks both spans, with its type but not its text."""
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}") as (replica, channel):
        stub = pb.BackupServiceStub(channel)
        assert await stub.Get(pb.GetBackupRequest(backup_id="none")).code() is StatusCode.NOT_FOUND
        await sql.execute("ALTER TABLE backups RENAME TO hidden")
        assert await stub.Get(pb.GetBackupRequest(backup_id="none")).code() is StatusCode.UNAVAILABLE
        await _stop(replica)

    found, absent, failed, unavailable = collector.spans
    assert [span.status.code for span in (found, absent)] == [Status.STATUS_CODE_UNSET] * 2
    assert _attributes(absent)["rpc.response.status_code"] == "NOT_FOUND"
    assert [(span.status.code, span.status.message) for span in (failed, unavailable)] == [(Status.STATUS_CODE_ERROR, "")] * 2
    assert _attributes(failed)["error.type"] == "asyncpg.exceptions.UndefinedTableError"
    assert _attributes(failed)["db.response.status_code"] == "42P01"
    assert _attributes(unavailable)["error.type"] == "UNAVAILABLE"
    assert "does not exist" not in str(collector.requests)


async def _calls_in_flight(metrics_address: str) -> float:
    return value_of(await scrape_address(metrics_address), "backups_admission_in_flight")


async def test_spans_of_calls_that_share_a_query(
    start_traced: StartTraced, collector: Collector, sql: Sql, issuer: Issuer, jwt: dict[str, str]
) -> None:
    """Each call has a span of its query in its own trace, even if one query answers several calls and one of them is cancelled."""
    [port] = free_ports(1)
    metrics = f"127.0.0.1:{port}"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}", "BACKUPS_METRICS_LISTEN": metrics}
    async with start_traced(**variables, **jwt) as (replica, channel):
        stub: Any = pb.BackupServiceStub(channel)
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            metadata = [[("traceparent", f"00-{number:032x}-{_PARENT}-01"), _bearer(issuer)] for number in range(1, 21)]
            calls = [stub.Get(pb.GetBackupRequest(backup_id="none"), metadata=each) for each in metadata]
            await eventually(lambda: _calls_in_flight(metrics), 20, timeout_s=20)
            calls[3].cancel()
            await eventually(lambda: [line for line in replica.log() if line.get("code") == "CANCELLED"], bool, timeout_s=20)
        codes = [await call.code() for call in calls]
        await _stop(replica)
    assert codes == [StatusCode.CANCELLED if number == 3 else StatusCode.NOT_FOUND for number in range(20)]
    served = {span.span_id: span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER}
    queries = [span for span in collector.spans if span.kind == Span.SPAN_KIND_CLIENT]
    assert sorted(span.trace_id.hex() for span in queries) == [f"{number:032x}" for number in range(1, 21)]
    for query in queries:
        call = served[query.parent_span_id]
        assert call.trace_id == query.trace_id
        assert call.start_time_unix_nano <= query.start_time_unix_nano <= query.end_time_unix_nano <= call.end_time_unix_nano
        is_cancelled = query.trace_id.hex() == f"{4:032x}"
        assert is_cancelled or [event.name for event in query.events] == ["connected"]
        assert (query.status.code == Status.STATUS_CODE_ERROR) is is_cancelled


async def test_span_of_a_call_that_expires_before_its_query(start_traced: StartTraced, collector: Collector, sql: Sql) -> None:
    """The query that an expired call shares with others does not change the span of that call, which has ended."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}", "BACKUPS_POOL_SIZE": "1"}
    async with start_traced(**variables) as (replica, channel):
        stub: Any = pb.BackupServiceStub(channel)
        async with sql.transaction():
            await sql.execute("LOCK TABLE backups")
            holding = stub.List(pb.ListBackupsRequest(folder_id="f"))
            await eventually(lambda: sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"), bool)
            waiting = [stub.Get(pb.GetBackupRequest(backup_id="none"), timeout=(1, 20)[number % 2]) for number in range(20)]
            assert {await call.code() for call in waiting[::2]} == {StatusCode.DEADLINE_EXCEEDED}
            await eventually(lambda: sum(line["event"] == "call" for line in replica.log()), 10, timeout_s=20)
        codes = {await call.code() for call in (holding, *waiting[1::2])}
        await _stop(replica)
    assert codes == {StatusCode.OK, StatusCode.NOT_FOUND}
    assert [line for line in replica.log() if line["level"] == "warning"] == []
    events = sorted(len(span.events) for span in collector.spans if span.kind == Span.SPAN_KIND_CLIENT)
    assert events == [0] * 10 + [1] * 11


async def test_untraced_calls(start_traced: StartTraced, collector: Collector, issuer: Issuer, jwt: dict[str, str]) -> None:
    """Health checks, queries of the readiness check, rejected tokens and unsampled traces create no spans."""
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}", **jwt) as (replica, channel):
        health: Any = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest())
        stub: Any = pb.BackupServiceStub(channel)
        await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[_UNSAMPLED, _bearer(issuer)])
        assert await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[_TRACEPARENT]).code() is StatusCode.UNAUTHENTICATED
        await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[_bearer(issuer)])
        await _stop(replica)
    assert [span.name for span in collector.spans] == ["SELECT backups", f"{_SERVICE}/List"]


@pytest.mark.parametrize(("ratio", "traceparent"), [(0, _TRACEPARENT), (1, _UNSAMPLED)])
async def test_unauthenticated_callers_do_not_control_sampling(
    start_traced: StartTraced, collector: Collector, ratio: int, traceparent: tuple[str, str]
) -> None:
    """The sampler alone decides for an unauthenticated caller, not the caller's sampled flag; the caller's trace is linked."""
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(ratio)}
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}", **sampler) as (replica, channel):
        stub: Any = pb.BackupServiceStub(channel)
        await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[traceparent])
        await _stop(replica)
    calls = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert len(calls) == ratio
    for call in calls:
        assert (call.trace_id.hex() == _TRACE, call.parent_span_id) == (False, b"")
        assert [(link.trace_id.hex(), link.span_id.hex()) for link in call.links] == [(_TRACE, _PARENT)]


async def test_methods_without_authentication_do_not_control_sampling(
    start_traced: StartTraced, collector: Collector, jwt: dict[str, str]
) -> None:
    """If the service requires tokens, the sampler alone still decides for the methods that require none."""
    variables = jwt | {"BACKUPS_PUBLIC_ADDRESS": "backups.example.com:443", "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}", **variables) as (replica, channel):
        stub: Any = pb.ApiEndpointServiceStub(channel)
        assert await stub.List(pb.ListApiEndpointsRequest(), metadata=[_TRACEPARENT]).code() is StatusCode.OK
        await _stop(replica)
    assert collector.spans == []


async def test_invalid_trace_headers(start_traced: StartTraced, collector: Collector, issuer: Issuer, jwt: dict[str, str]) -> None:
    """An invalid traceparent starts a new trace; tracestate and baggage are ignored."""
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
        await _stop(replica)
    *calls, good = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert len(calls) == len(bad)
    assert all(call.trace_id.hex() != _TRACE and not call.parent_span_id for call in calls)
    assert good.trace_id.hex() == _TRACE
    assert "hunter2" not in str(collector.requests)


async def test_otel_variables(start_traced: StartTraced, collector: Collector, issuer: Issuer, jwt: dict[str, str]) -> None:
    """The variables of OpenTelemetry set the name of the service and the sampler."""
    variables = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SERVICE_NAME": "ours", "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}", **variables, **jwt) as (replica, channel):
        stub: Any = pb.BackupServiceStub(channel)
        await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[_bearer(issuer)])
        await stub.List(pb.ListBackupsRequest(folder_id="f"), metadata=[_TRACEPARENT, _bearer(issuer)])
        await _stop(replica)
    assert [span.trace_id.hex() for span in collector.spans] == [_TRACE, _TRACE]
    assert _attributes(collector.requests[0].resource_spans[0].resource)["service.name"] == "ours"


@pytest.mark.parametrize("collector_is", ["absent", "unresponsive"])
async def test_unavailable_collector(start_traced: StartTraced, collector_is: str) -> None:
    """If the collector is absent or unresponsive, calls succeed and shutdown is not delayed."""
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if collector_is == "unresponsive":
            dead.listen()
        address = f"http://127.0.0.1:{dead.getsockname()[1]}"
        batches = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BSP_MAX_QUEUE_SIZE": "20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10"}
        async with start_traced(OTEL_EXPORTER_OTLP_ENDPOINT=address, **batches) as (replica, channel):
            stub = pb.BackupServiceStub(channel)
            for _ in range(100):  # more spans than the queue holds
                assert await stub.List(pb.ListBackupsRequest(folder_id="f"), timeout=20).code() is StatusCode.OK
            await _stop(replica, within=8)
        assert "stopped" in {line["event"] for line in replica.log()}


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
