"""Servers with traces, in the process of the tests."""

import json
import sys

import grpc
import pytest
from grpc import StatusCode
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service import pb
from service.observability import logs, tracing
from tests.support.server import StartServer


async def test_span_of_a_call(start_server: StartServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If traces are configured, a call has a span, and its line in the log has the id of the trace."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "OTLPSpanExporter", lambda: exporter)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    async with start_server() as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        await pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="f"))
    query, call = exporter.get_finished_spans()
    assert (call.name, query.name) == ("yandex.cloud.mdb.greenplum.v1.BackupService/List", "SELECT backups")
    [line] = [line for line in _logged(capsys) if line["event"] == "call"]
    assert call.context
    assert line["trace_id"] == f"{call.context.trace_id:032x}"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER must be otlp"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "OTEL_EXPORTER_OTLP_PROTOCOL must be grpc"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OpenTelemetry cannot use a variable OTEL_... (ValueError)"),
        ({}, "OpenTelemetry is not installed: see requirements/production.txt"),
    ],
    ids=lambda value: next(iter(value), "not installed") if isinstance(value, dict) else "",
)
async def test_unavailable_traces(
    start_server: StartServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    problem: str,
) -> None:
    """If traces are configured but unavailable, the server logs one warning at start and serves."""
    if not variables:
        monkeypatch.setitem(sys.modules, "service.observability.tracing", None)  # its import fails
    for name, value in ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"} | variables).items():
        monkeypatch.setenv(name, value)
    async with start_server() as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        assert await pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="f")).code() is StatusCode.OK
    logged = _logged(capsys)
    [line] = [line for line in logged if line["event"] == "no traces"]
    assert (line["level"], problem in line["problem"]) == ("warning", True), line
    assert [line.get("trace_id") for line in logged if line["event"] == "call"] == [None]


def _logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    logs.flush()
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]
