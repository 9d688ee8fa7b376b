"""Content of log lines, and values that must not be in them."""

import json
import logging
import re
from collections.abc import Iterator

import pytest
from opentelemetry.trace import INVALID_SPAN
from typer.testing import CliRunner

from service import server
from service.cli import app
from service.errors import CatalogUnavailable
from service.observability import logs
from service.observability.metrics import Metrics
from service.observability.tracing import CallSpan
from tests.support.eventually import eventually
from tests.support.repository import ROOT


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Restore the logging configuration of the process after each test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    render, log_level = logs.LOG.render, logs.LOG.level
    yield
    logs.LOG.pending.clear()
    root.handlers[:], root.level = handlers, level
    logs.LOG.render, logs.LOG.level = render, log_level


def _call(request_id: str) -> logs.Call:
    metrics = Metrics().of_method("/s/Get", kind="unary")
    return logs.Call("/s/Get", metrics, request_id=request_id, peer="ipv4:127.0.0.1:1")


async def _written(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the logged lines of calls, which are written in batches."""
    return await eventually(lambda: capsys.readouterr().err, bool)


async def test_a_call_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A call is logged with method, status, duration, peer and request id."""
    logs.configure_logging(log_format="json", log_level="info")
    _call("r1").finish("OK")

    [line] = (await _written(capsys)).splitlines()
    logged = json.loads(line)
    assert logged.pop("duration_ms") >= 0
    assert logged.pop("time").endswith("Z")
    assert logged == {"event": "call", "level": "info", "method": "/s/Get", "code": "OK", "request_id": "r1", "peer": "ipv4:127.0.0.1:1"}


async def test_calls_are_written_together(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of calls are buffered for a limited time and number, and any other event flushes them in order."""
    logs.configure_logging(log_format="json", log_level="info")
    for request_id in ("r1", "r2"):
        _call(request_id).finish("OK")
    assert capsys.readouterr().err == ""
    assert [json.loads(line)["request_id"] for line in (await _written(capsys)).splitlines()] == ["r1", "r2"]

    _call("r3").finish("OK")
    logs.event("listening")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["call", "listening"]

    for _ in range(logs.MAX_PENDING_LINES):
        _call("r4").finish("OK")
    assert len(capsys.readouterr().err.splitlines()) == logs.MAX_PENDING_LINES


async def test_fields_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/operating.md has a row for every field that the line of a call can have, and no other."""
    logs.configure_logging(log_format="json", log_level="info")
    metrics = Metrics().of_method("/s/Get", kind="unary")
    call = logs.Call("/s/Get", metrics, request_id="r1", peer="ipv4:127.0.0.1:1")
    call.span = CallSpan(INVALID_SPAN)
    call.caller, call.folder, call.rejection = "client", "f1", "expired"
    call.finish("UNAVAILABLE", level="warning", error=CatalogUnavailable())

    section = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8").split("\n## Logs\n")[1].split("\n##")[0]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted([*documented, "event", "level", "time"]) == sorted(json.loads(await _written(capsys)))


def test_a_line_cannot_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    """Line breaks in logged values do not start a new line."""
    logs.configure_logging(log_format="json", log_level="info")
    logs.event("x", value='a\n{"event": "forged"}\u2028\r')
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    """Events below the configured level are not logged."""
    logs.configure_logging(log_format="json", log_level="warning")
    logs.event("quiet")
    logs.event("loud", level="warning")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]


def test_a_line_of_a_library(capsys: pytest.CaptureFixture[str]) -> None:
    """A warning that a library logs is one line, with the fields of the service's own lines; less severe lines are dropped."""
    logs.configure_logging(log_format="json", log_level="info")
    logging.getLogger("asyncio").info("Using selector")
    logging.getLogger("asyncio").warning("Executing %s took\n%.1f s", "a task", 0.25)

    logged = json.loads(capsys.readouterr().err)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", logged.pop("time"))
    assert logged == {"event": "Executing a task took\n0.2 s", "level": "warning"}


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_texts_of_other_errors_are_not_logged(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    """An error of a library, even one that the library logs, is logged by type and location, because its text may contain a password."""
    logs.configure_logging(log_format=log_format, log_level="debug")
    try:
        try:
            raise ValueError("hunter2")
        except ValueError as exc:
            raise CatalogUnavailable("PostgreSQL was lost") from exc
    except CatalogUnavailable as exc:
        _call("r").finish("UNAVAILABLE", level="warning", error=exc)
        logs.flush()
        logging.getLogger("grpc._cython.cygrpc").exception("Unexpected error")

    logged = capsys.readouterr().err
    assert "hunter2" not in logged
    assert logged.count("ValueError") >= 2
    assert logged.count("PostgreSQL was lost") >= 2
    assert "test_logs.py" in logged


def test_unexpected_error_of_serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An unexpected error of `serve` is logged without its text, which a traceback would contain, and the status is 1."""

    def fail(build: object) -> None:
        raise ZeroDivisionError("hunter2")

    monkeypatch.setattr(server, "serve", fail)
    done = CliRunner().invoke(app, ["serve"])
    assert (done.exit_code, done.stdout) == (1, "")
    [line] = [json.loads(line) for line in done.stderr.splitlines() if '"failed"' in line]
    assert (line["level"], line["error"][0]["type"]) == ("critical", "builtins.ZeroDivisionError")
    assert "hunter2" not in done.output


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_line_of_a_library_that_cannot_be_formatted(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    """A library's line whose values do not fit its text is reported by the error's type and location, without the values."""
    logs.configure_logging(log_format=log_format, log_level="info")
    logging.getLogger("asyncio").warning("%d s", "hunter2")
    [line] = capsys.readouterr().err.splitlines()
    assert "log line cannot be formatted" in line
    assert "TypeError" in line
    assert "hunter2" not in line
