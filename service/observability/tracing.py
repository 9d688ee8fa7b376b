"""OpenTelemetry traces: a span for each call, with a child span for its query. Imported only if tracing is configured.

Attributes follow the semantic conventions for RPC and databases. The only values from a client are the ids of the trace and the request.
"""

import asyncio
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import lru_cache

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import VERSION
from service.errors import CatalogUnavailable, TracingUnavailable

# Status codes that the semantic conventions list as errors of a server.
_SERVER_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


class CallSpan:
    """The span of a call."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    def finish(self, code: str) -> None:
        """End the span with the name of the call's status code."""
        self._span.set_attribute("rpc.response.status_code", code)
        if code in _SERVER_ERRORS:
            self._span.set_attribute("error.type", code)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """Creates spans and exports them as the variables OTEL_... configure."""

    flush_within = timedelta(seconds=3)
    """Timeout for sending the last spans during shutdown."""

    def __init__(self, *, trusts_callers: bool) -> None:
        """
        Args:
            trusts_callers: True if callers are authenticated. Only then is the caller's span the parent of a call's span.

        Raises:
            TracingUnavailable: a variable has a value that is not supported.
        """
        self._trusts_callers = trusts_callers
        _require("OTEL_TRACES_EXPORTER", "otlp")
        _require("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
        _require("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        self._exporter = OTLPSpanExporter()
        self._processor = BatchSpanProcessor(self._exporter)
        ours = Resource.create({"service.name": "greenplum-backup-service", "service.version": VERSION})
        provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("service", VERSION)
        self._propagator = TraceContextTextMapPropagator()

    def call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], *, request_id: str, seconds: float, is_authenticated: bool
    ) -> CallSpan:
        """Begin the span of a call and make it the current span of the task.

        The span of an unauthenticated caller becomes a link, not the parent: a parent's sampled flag overrides the sampler.

        Args:
            method: `/package.Service/Method` of an existing method.
            seconds: how long ago the call began.
            is_authenticated: True if the method requires authentication.
        """
        # Without tracestate: it is not used, and clients choose its length.
        carrier = {key: value for key, value in metadata if key == "traceparent" and isinstance(value, str)}
        remote = self._propagator.extract(carrier, context.Context())
        caller = trace.get_current_span(remote).get_span_context()
        is_parent = is_authenticated and self._trusts_callers
        name = method.removeprefix("/")
        span = self._tracer.start_span(
            name,
            context=remote if is_parent else context.Context(),
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": name, "backups.request_id": request_id},
            links=() if is_parent or not caller.is_valid else (trace.Link(caller),),
            start_time=time.time_ns() - int(seconds * 1e9),
        )
        context.attach(trace.set_span_in_context(span))
        return CallSpan(span)

    def queries_of(self, database: str) -> Callable[[str], AbstractContextManager[Callable[[], None]]]:
        """Return a function that creates the span of a query to this database, as a context manager.

        The context manager yields a function to call when the query has a connection. Queries outside a call, such as those of the
        readiness check, have no span.
        """

        @contextmanager
        def query(text: str) -> Iterator[Callable[[], None]]:
            if not trace.get_current_span().is_recording():
                yield lambda: None
                return
            attributes = _query_attributes(text, database)
            span = self._tracer.start_span(attributes["db.query.summary"], kind=SpanKind.CLIENT, attributes=attributes)

            def connected() -> None:
                if span.is_recording():  # a cancelled call has ended its span, but its query may run for other calls
                    span.add_event("connected")

            try:
                yield connected
            except BaseException as exc:
                _record_error(span, exc)
                raise
            finally:
                span.end()

        return query

    async def close(self) -> None:
        """Send the last spans, for at most `flush_within`."""
        flushing = threading.Thread(target=self._processor.shutdown, daemon=True)  # the process can exit before it ends
        flushing.start()
        await asyncio.to_thread(flushing.join, self.flush_within.total_seconds())
        if flushing.is_alive():
            self._exporter.shutdown()


def _require(name: str, only: str) -> None:
    value = os.environ.get(name, "").strip() or only
    if value != only:
        raise TracingUnavailable(f"{name} must be {only} or unset: no other value is supported")


def _query_attributes(text: str, database: str) -> dict[str, str]:
    operation, table = _summary(text)
    return {
        "db.system.name": "postgresql",
        "db.namespace": database,
        "db.operation.name": operation,
        "db.collection.name": table,
        "db.query.summary": f"{operation} {table}",
        "db.query.text": text,
    }


@lru_cache(maxsize=100)
def _summary(query: str) -> tuple[str, str]:
    """Return the operation and the table of a statement of the service."""
    found = re.match(r"\s*(\w+)\b.*\bFROM\s+(\w+)", query, re.DOTALL)
    assert found, "every query of the service is a SELECT, and the last table in it is the one that it reads"
    return found[1], found[2]


def _record_error(span: Span, error: BaseException) -> None:
    """Record an error by its type and SQLSTATE, without its text, which may contain secrets."""
    if isinstance(error, CatalogUnavailable) and error.__cause__:
        error = error.__cause__
    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", f"{type(error).__module__}.{type(error).__qualname__}")
    if sqlstate := getattr(error, "sqlstate", None):
        span.set_attribute("db.response.status_code", sqlstate)
