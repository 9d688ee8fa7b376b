"""Spans of calls and queries, exported to memory. tests/acceptance/test_tracing.py exports those of a server to a collector."""

import asyncio
import threading
from collections.abc import Sequence
from datetime import timedelta

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from service.errors import CatalogUnavailable, TracingUnavailable
from service.observability import tracing
from service.observability.tracing import Tracing

_TRACE, _PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_METADATA: list[tuple[str, str | bytes]] = [("traceparent", f"00-{_TRACE}-{_PARENT}-01"), ("tracestate", "a=b"), ("traceparent-bin", b"\0")]
_QUERY = "SELECT wire FROM backups WHERE id = $1"


@pytest.fixture(name="exporter")
def _exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "OTLPSpanExporter", lambda: exporter)
    return exporter


def _call(traces: Tracing, *, is_authenticated: bool = True) -> tracing.CallSpan:
    return traces.call("/s/Get", _METADATA, request_id="r1", seconds=0.5, is_authenticated=is_authenticated)


async def test_a_call_and_its_query(exporter: InMemorySpanExporter) -> None:
    """The span of a call is a child of its trusted caller's span, and has a child for its query."""
    traces = Tracing(trusts_callers=True)
    call = _call(traces)
    with traces.queries_of("catalog")(_QUERY) as connected:
        connected()
    call.finish("OK")
    await traces.close()

    query, server = exporter.get_finished_spans()
    assert (server.name, call.trace_id, server.parent and f"{server.parent.span_id:016x}") == ("s/Get", _TRACE, _PARENT)
    assert server.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "s/Get",
        "backups.request_id": "r1",
        "rpc.response.status_code": "OK",
    }
    assert (server.end_time or 0) - (server.start_time or 0) >= 500_000_000
    assert query.parent == server.get_span_context()
    assert (query.name, [event.name for event in query.events], query.status.status_code) == (
        "SELECT backups",
        ["connected"],
        StatusCode.UNSET,
    )
    assert (query.attributes or {})["db.namespace"] == "catalog"


@pytest.mark.parametrize(("trusts_callers", "is_authenticated"), [(False, True), (True, False)])
async def test_other_callers_are_linked(exporter: InMemorySpanExporter, *, trusts_callers: bool, is_authenticated: bool) -> None:
    """The span of a caller that is not authenticated is a link, so that it does not choose what is sampled."""
    traces = Tracing(trusts_callers=trusts_callers)
    _call(traces, is_authenticated=is_authenticated).finish("UNAVAILABLE")
    await traces.close()

    [server] = exporter.get_finished_spans()
    assert server.parent is None
    assert [f"{link.context.trace_id:032x}" for link in server.links] == [_TRACE]
    assert server.status.status_code is StatusCode.ERROR
    assert (server.attributes or {})["error.type"] == "UNAVAILABLE"


class _DriverError(Exception):
    sqlstate = "57P01"


async def test_a_failed_query(exporter: InMemorySpanExporter) -> None:
    """The span of a failed query has the type and the SQLSTATE of the cause, and no text of the error."""
    traces = Tracing(trusts_callers=True)
    call = _call(traces)
    with pytest.raises(CatalogUnavailable), traces.queries_of("catalog")(_QUERY):
        raise CatalogUnavailable("hunter2") from _DriverError("hunter2")
    call.finish("UNAVAILABLE")
    await traces.close()

    query, _ = exporter.get_finished_spans()
    attributes = query.attributes or {}
    assert attributes["error.type"] == f"{__name__}._DriverError"
    assert attributes["db.response.status_code"] == "57P01"
    assert "hunter2" not in query.to_json()


async def test_queries_outside_a_call(exporter: InMemorySpanExporter) -> None:
    """A query outside a call, such as that of the readiness check, has no span."""
    traces = Tracing(trusts_callers=True)
    with traces.queries_of("catalog")(_QUERY) as connected:
        connected()
    await traces.close()
    assert exporter.get_finished_spans() == ()


async def test_close_with_an_unresponsive_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the last spans cannot be sent within `flush_within`, the exporter is shut down, which ends its attempt."""

    class Unresponsive(InMemorySpanExporter):
        stopped = threading.Event()

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            self.stopped.wait(30)
            return SpanExportResult.FAILURE

        def shutdown(self) -> None:
            self.stopped.set()

    monkeypatch.setattr(tracing, "OTLPSpanExporter", Unresponsive)
    monkeypatch.setattr(Tracing, "flush_within", timedelta(seconds=0.1))
    traces = Tracing(trusts_callers=True)
    _call(traces).finish("OK")
    async with asyncio.timeout(20):
        await traces.close()
    assert Unresponsive.stopped.is_set()


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "x")],
)
def test_unsupported_values(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Exporters and protocols that are not supported are rejected, with the name of the variable."""
    monkeypatch.setenv(name, value)
    with pytest.raises(TracingUnavailable, match=name):
        Tracing(trusts_callers=False)
