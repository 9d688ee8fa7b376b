"""Logs: one line a call, and one an event in the server's life. The names of what is logged stand here.

A line says nothing that a client chose freely, and no text of an error that is not ours: such texts can hold a password. The types and
the places of the code say where to look.
"""

import asyncio
import contextlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from service.errors import Error, Rejection
from service.observability.metrics import MethodMetrics

if TYPE_CHECKING:  # imported only if traces are configured
    from service.observability.tracing import CallSpan

_LEVELS = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()}

_encode = json.JSONEncoder(default=repr).encode  # json.dumps makes an encoder for each line

# A write costs more than its line, and keeps an answer waiting: the lines of calls go out a little later, together.
_PATIENCE_S = 0.01
_MOST_LINES = 64

# Characters that are logged of values that a client's token or request contains.
_CALLER_MAX = 200
_FOLDER_MAX = 50


class _Log(NamedTuple):
    """How lines are written: by structlog's renderers, but without its loggers, whose way costs more than the line."""

    render: Callable[[Any, str, dict[str, Any]], str]
    least: int


def _json(logger: Any, level: str, facts: structlog.typing.EventDict) -> str:
    return _encode(facts)


def _console(render: structlog.dev.ConsoleRenderer) -> Callable[[Any, str, dict[str, Any]], str]:
    """Without what would command the terminal: a token's subject, say."""

    def rendered(logger: Any, level: str, facts: dict[str, Any]) -> str:
        shown = {name: ascii(fact) if isinstance(fact, str) and not fact.isprintable() else fact for name, fact in facts.items()}
        return str(render(logger, level, shown))

    return rendered


class _Line(NamedTuple):
    """What is to be written."""

    at: float
    level: str
    name: str
    facts: dict[str, Any]

    def render(self) -> str:
        at = f"{_second(int(self.at))}.{int(self.at % 1 * 1_000_000):06}Z"
        return _log.render(None, self.level, {"time": at, "level": self.level, "event": self.name} | self.facts) + "\n"


@lru_cache(maxsize=2)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


_log = _Log(_json, logging.INFO)
_waiting: list[_Line] = []


def configure_logging(*, log_format: str, log_level: str) -> None:
    """Everything goes to standard error, libraries' own logs too.

    Args:
        log_format: `json`, or `console` for people.
        log_level: the least severe level that is logged.
    """
    global _log
    render: Any = _json if log_format == "json" else _console(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    _log = _Log(render, _LEVELS[log_level])
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")],
            processors=[_describe_exc_info, structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(level=max(_log.least, logging.WARNING), handlers=[handler], force=True)


def event(name: str, /, *, level: str = "info", **facts: Any) -> None:
    """Logs something in the server's life."""
    if _LEVELS[level] >= _log.least:
        _waiting.append(_Line(time.time(), level, name, facts))
        flush()


def _event_soon(name: str, level: str, facts: dict[str, Any]) -> None:
    if _LEVELS[level] < _log.least:
        return
    _waiting.append(_Line(time.time(), level, name, facts))
    if len(_waiting) == 1:
        asyncio.get_running_loop().call_later(_PATIENCE_S, flush)
    elif len(_waiting) >= _MOST_LINES:
        flush()


def flush() -> None:
    """Writes the lines that wait."""
    global _waiting  # taken in one step: gRPC's threads log too
    lines, _waiting = _waiting, []
    with contextlib.suppress(OSError):  # a full disk costs lines, and no calls
        sys.stderr.write("".join([line.render() for line in lines]))


class Call:
    """The log line, metrics and span of one call."""

    __slots__ = ("_began", "_metrics", "caller", "folder", "method", "peer", "rejection", "request_id", "span")

    def __init__(self, method: str, metrics: MethodMetrics, *, request_id: str, peer: str) -> None:
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
        """How long the call has taken until now."""
        return time.perf_counter() - self._began

    def ended(self, code: str, *, level: str = "info", error: BaseException | None = None) -> None:
        """Count the call, end its span and log it, with the cause of an error of the server."""
        seconds = self.seconds
        self._metrics.handled(code).inc()
        self._metrics.seconds.observe(seconds)
        facts: dict[str, Any] = {"code": code, "duration_ms": round(seconds * 1000, 3)}
        if self.folder:
            facts["folder"] = self.folder[:_FOLDER_MAX]
        if self.rejection:
            facts["rejection"] = self.rejection
            self._metrics.rejected(self.rejection).inc()
        if self.span is not None:
            facts["trace_id"] = self.span.trace_id
            self.span.ended(code)
        if error is not None:
            facts["error"] = describe(error)
        _event_soon("call", level, self._identity() | facts)

    def not_read(self) -> None:
        """Count and log that the answer was cancelled, because the client has not read it in time."""
        self._metrics.not_read.inc()
        _event_soon("answer not read", "warning", self._identity())

    def _identity(self) -> dict[str, Any]:
        caller = {"caller": self.caller[:_CALLER_MAX]} if self.caller else {}
        return {"method": self.method, "request_id": self.request_id, "peer": self.peer} | caller


def describe(error: BaseException) -> list[dict[str, Any]]:
    """An error and what caused it, without the texts of errors that are not ours."""
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
    return facts | {"at": _places(error.__traceback__)}


def _places(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)[-8:]]


def _describe_exc_info(logger: Any, method_name: str, event_dict: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A library's log of an exception."""
    if exc_info := event_dict.pop("exc_info", None):
        error = exc_info[1] if isinstance(exc_info, tuple) else sys.exception()
        event_dict["error"] = describe(error) if error else None
    event_dict.pop("exc_text", None)
    return event_dict
