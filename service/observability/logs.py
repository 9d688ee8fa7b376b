"""Logs: one line for each call and for each event of the server.

No line contains free text from a client, or the text of an error that is not the service's own: such a text may contain a password.
Errors are logged by their types and by the lines of code that raised them.
"""

import asyncio
import contextlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from service.contract import FOLDER_ID_MAX_LENGTH
from service.errors import Error, Rejection
from service.observability.log_writer import LogWriter
from service.observability.metrics import MethodMetrics

if TYPE_CHECKING:  # imported only if they are configured
    from structlog.dev import ConsoleRenderer

    from service.observability.tracing import CallSpan

_LEVELS = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()}

_encode = json.JSONEncoder(default=repr).encode  # json.dumps makes an encoder for each line

# Waking the writer's thread takes longer than rendering a line. So the lines of calls are written together, a little later.
_WRITE_DELAY_S = 0.01
MAX_PENDING_LINES = 64

_CALLER_MAX = 200  # characters that are logged of a token's subject


_Render: TypeAlias = Callable[[dict[str, Any]], str]
"""Renders the facts of one line, without its line break."""


def _console(render: "ConsoleRenderer") -> _Render:
    """Return a renderer that escapes control characters: a token's subject could contain commands for the terminal."""

    def rendered(facts: dict[str, Any]) -> str:
        printable = {name: ascii(fact) if isinstance(fact, str) and not fact.isprintable() else fact for name, fact in facts.items()}
        return str(render(None, facts["level"], printable))

    return rendered


class _Line(NamedTuple):
    """A line that is not written yet."""

    at: float
    level: str
    name: str
    facts: dict[str, Any]

    def rendered(self, render: _Render) -> str:
        at = f"{_format_second(int(self.at))}.{int(self.at % 1 * 1_000_000):06}Z"
        return render({"time": at, "level": self.level, "event": self.name} | self.facts) + "\n"


@lru_cache(maxsize=2)
def _format_second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Log:
    """The configuration of the log, and the lines that are not written yet."""

    def __init__(self) -> None:
        self.render: _Render = _encode
        self.level = logging.INFO
        self.pending: list[_Line] = []
        self.writer: LogWriter | None = None
        """None if lines are written by the thread that logs them: in commands, and before a server starts."""


class _Handler(logging.Handler):
    """Writes the lines of libraries."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            error = record.exc_info[1] if record.exc_info else None
            facts = {"error": describe(error)} if error else {}
            _write(_Line(record.created, record.levelname.lower(), record.getMessage(), facts).rendered(LOG.render))
        except Exception as exc:  # logging's own report would quote the values
            event("log line cannot be formatted", level="error", logger=record.name, error=describe(exc))


LOG = Log()
"""The log of the process. It is the only mutable global: otherwise every function that logs would need it as an argument."""


def configure_logging(*, log_format: str, log_level: str) -> None:
    """Write all logs to standard error, including those of libraries.

    Args:
        log_format: `json`, or `console` for a human-readable format.
        log_level: the least severe level that is logged.
    """
    LOG.render, LOG.level = _encode if log_format == "json" else _console(_console_renderer()), _LEVELS[log_level]
    logging.basicConfig(level=max(LOG.level, logging.WARNING), handlers=[_Handler()], force=True)


def _console_renderer() -> "ConsoleRenderer":
    from structlog.dev import ConsoleRenderer  # takes as long to import as half of a command

    return ConsoleRenderer(colors=sys.stderr.isatty())


def event(name: str, /, *, level: str = "info", **facts: Any) -> None:
    """Log an event of the server, immediately."""
    if _LEVELS[level] >= LOG.level:
        LOG.pending.append(_Line(time.time(), level, name, facts))
        flush()


def _event_soon(name: str, level: str, facts: dict[str, Any]) -> None:
    if _LEVELS[level] < LOG.level:
        return
    LOG.pending.append(_Line(time.time(), level, name, facts))
    if len(LOG.pending) == 1:
        asyncio.get_running_loop().call_later(_WRITE_DELAY_S, flush)
    elif len(LOG.pending) >= MAX_PENDING_LINES:
        flush()


def flush() -> None:
    """Write the pending lines."""
    lines, LOG.pending = LOG.pending, []  # replaced, not cleared, because gRPC's threads log too
    if lines:
        _write("".join([line.rendered(LOG.render) for line in lines]))


def _write(text: str) -> None:
    """Write complete lines. An error drops them and affects nothing else."""
    if LOG.writer is not None:
        LOG.writer.write(text)
        return
    with contextlib.suppress(OSError):
        sys.stderr.write(text)


@contextlib.contextmanager
def writing_in_background() -> Iterator[None]:
    """Let a thread write the lines that are logged within the context, so that a full pipe or a slow disk blocks no caller."""
    LOG.writer = LogWriter(sys.stderr, report=_dropped_lines)
    try:
        yield
    finally:
        flush()
        if LOG.writer.close():
            LOG.writer = None  # if the thread is blocked, it is kept, so that later lines do not block the process


def _dropped_lines(count: int) -> str:
    return _Line(time.time(), "warning", "log lines dropped", {"count": count}).rendered(LOG.render)


def dropped() -> int:
    """Return the number of lines that were dropped since the server started."""
    return LOG.writer.dropped if LOG.writer else 0


class Call:
    """The log line, metrics and span of one call."""

    __slots__ = ("_began", "_level", "_metrics", "caller", "folder", "method", "peer", "rejection", "request_id", "span")

    def __init__(self, method: str, metrics: MethodMetrics, *, request_id: str, peer: str, level: str = "info") -> None:
        self._level = level
        self.method, self.request_id, self.peer = method, request_id, peer
        self.caller = ""
        """The token's `sub`, once the token is verified."""
        self.folder = ""
        """The requested folder, which only a client with a valid token can choose."""
        self.rejection: Rejection | None = None
        self.span: CallSpan | None = None
        self._metrics = metrics
        self._began = time.perf_counter()
        metrics.started.inc()

    @property
    def seconds(self) -> float:
        """Duration of the call until now."""
        return time.perf_counter() - self._began

    def finish(self, code: str, *, level: str | None = None, error: BaseException | None = None) -> None:
        """Count the call, end its span and log it, with the cause of an error of the server.

        Args:
            level: level of the line, if not the one of successful calls.
        """
        seconds = self.seconds
        self._metrics.handled(code).inc()
        self._metrics.seconds.observe(seconds)
        facts: dict[str, Any] = {"code": code, "duration_ms": round(seconds * 1000, 3)}
        if self.folder:
            facts["folder"] = self.folder[:FOLDER_ID_MAX_LENGTH]
        if self.rejection:
            facts["rejection"] = self.rejection
            self._metrics.rejected(self.rejection).inc()
        if self.span is not None:
            facts["trace_id"] = self.span.trace_id
            self.span.finish(code)
        if error is not None:
            facts["error"] = describe(error)
        _event_soon("call", level or self._level, self._identity() | facts)

    def log_unread_response(self) -> None:
        """Count and log a response that was cancelled because the client did not read it in time."""
        self._metrics.not_read.inc()
        _event_soon("response not read", "warning", self._identity())

    def _identity(self) -> dict[str, Any]:
        caller = {"caller": self.caller[:_CALLER_MAX]} if self.caller else {}
        return {"method": self.method, "request_id": self.request_id, "peer": self.peer} | caller


def describe(error: BaseException) -> list[dict[str, Any]]:
    """Return an error and its causes by type and code location. Only the service's own errors are quoted."""
    chain: list[dict[str, Any]] = []
    seen: BaseException | None = error
    while seen is not None and len(chain) < 10:
        chain.append(_describe_one(seen))
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return chain


def _describe_one(error: BaseException) -> dict[str, Any]:
    facts: dict[str, Any] = {"type": f"{type(error).__module__}.{type(error).__qualname__}"}
    if isinstance(error, Error):
        facts["message"] = str(error)
    return facts | {"at": _locations(error.__traceback__)}


def _locations(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)[-8:]]
