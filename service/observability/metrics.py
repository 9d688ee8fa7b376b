"""Prometheus metrics with the usual names of gRPC, served over HTTP on a separate port. No label contains values that clients choose."""

import io
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from typing import Any, NamedTuple, TextIO, get_args
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, make_wsgi_app
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from service.address import Address, port_taken
from service.errors import Rejection

_METHOD_LABELS = ("grpc_service", "grpc_method", "grpc_type")

_MAX_CONNECTIONS = 20

# Bounds of the buckets: from the duration of a Get to the default request timeout.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class _ReadCounter(Collector):
    """A counter whose value a function returns at each scrape."""

    def __init__(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        self._name, self._help, self._read = name, help_text, read

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._help, value=self._read())


def _equals(state: str, read: Callable[[], str | None]) -> Callable[[], float]:
    return lambda: float(read() == state)


class MethodMetrics(NamedTuple):
    """The metrics of one method; their children are looked up once."""

    started: Counter
    handled: Callable[[str], Counter]
    """By the name of the status code."""
    seconds: Histogram
    rejected: Callable[[Rejection], Counter]
    """Rejected credentials of all methods, by reason."""
    not_read: Counter
    """Responses that were cancelled because their client did not read them."""


class Metrics:
    """A server's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._started = Counter("grpc_server_started", "Calls that have begun.", _METHOD_LABELS, registry=self._registry)
        self._handled = Counter(
            "grpc_server_handled", "Calls that have ended, by status code.", (*_METHOD_LABELS, "grpc_code"), registry=self._registry
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds", "Duration of calls, in seconds.", _METHOD_LABELS, registry=self._registry, buckets=_SECONDS
        )
        self._not_read = Counter(
            "backups_responses_not_read", "Responses that the client did not read in time.", _METHOD_LABELS, registry=self._registry
        )

        rejected = Counter("backups_rejected_credentials", "Calls whose credentials were rejected.", ("reason",), registry=self._registry)
        self._rejected = {reason: rejected.labels(reason) for reason in get_args(Rejection)}

    def of_method(self, path: str, *, kind: str) -> MethodMetrics:
        """Return the metrics of a method.

        Args:
            path: `/package.Service/Method` of an existing method.
            kind: `unary`, `server_stream` or `bidi_stream`.
        """
        _, service, method = path.split("/")
        labels = (service, method, kind)
        handled: dict[str, Counter] = {}

        def of_code(code: str) -> Counter:
            if code not in handled:
                handled[code] = self._handled.labels(*labels, code)
            return handled[code]

        return MethodMetrics(
            self._started.labels(*labels),
            of_code,
            self._seconds.labels(*labels),
            self._rejected.__getitem__,
            self._not_read.labels(*labels),
        )

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read for each scrape."""
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def state(self, name: str, help_text: str, label: str, states: Iterable[str], read: Callable[[], str | None]) -> None:
        """Add a gauge with a label: 1 for the current state, which is read for each scrape, and 0 for the others."""
        gauge = Gauge(name, help_text, (label,), registry=self._registry)
        for state in states:
            gauge.labels(state).set_function(_equals(state, read))

    def counter(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a counter whose value is read for each scrape."""
        self._registry.register(_ReadCounter(name, help_text, read))

    def collect(self, collector: Collector) -> None:
        """Add a collector, which creates its metrics in the thread of each scrape."""
        self._registry.register(collector)

    def build(self, **facts: str) -> None:
        """Add the metric `backups_build_info` with these labels."""
        Info("backups_build", "Versions of the server, of Python and gRPC, and of the required schema.", registry=self._registry).info(
            facts
        )

    @contextmanager
    def served(self, address: Address) -> Iterator[Address]:
        """Answer scrapes in threads, and yield the address, in which port 0 is replaced by the port in use.

        Raises:
            PortTaken: the address cannot be listened on.
        """
        try:
            server_class: type[WSGIServer] = type("Server", (_ScrapeServer,), {"address_family": _family(*address)})
            server = make_server(*address, make_wsgi_app(self._registry), server_class, _Scrape)
        except OSError as exc:
            raise port_taken(address, setting="BACKUPS_METRICS_LISTEN") from exc
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield address._replace(port=server.server_port)
        finally:
            # `shutdown` returns after up to half a second, when the loop checks its flag. Nothing has to wait for it.
            threading.Thread(target=server.shutdown, daemon=True).start()
            thread.join(timeout=1)
            server.server_close()


def _family(host: str, port: int) -> socket.AddressFamily:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]


class _ScrapeServer(ThreadingMixIn, WSGIServer):
    """A server with a thread for each connection, and a limit on both.

    Beyond the limit, the oldest connection is closed: a scrape ends within milliseconds, so only idle connections become the oldest.
    """

    daemon_threads = True
    request_queue_size = 128  # with the default of 5, the kernel drops connections of a burst, and their clients retry after a second

    def __init__(self, *args: Any) -> None:
        self._lock = threading.Lock()
        self._connections: OrderedDict[socket.socket, None] = OrderedDict()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._connections) >= _MAX_CONNECTIONS:
                oldest, _ = self._connections.popitem(last=False)
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread ends, and closes it
            self._connections[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)


class _Scrape(WSGIRequestHandler):
    """One connection. It writes nothing to standard error, which is the log."""

    timeout = 10.0  # seconds, for each read from the client and for each write to it

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def get_stderr(self) -> TextIO:
        return io.StringIO()

    def log_message(self, *args: object) -> None:
        pass
