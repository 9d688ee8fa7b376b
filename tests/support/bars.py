"""The bars that the deployment is held to under faults, `@pytest.mark.bar(number, what)`, and the report that `make soak` makes of them."""

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest

Figure: TypeAlias = Callable[[str], None]
"""Prints a figure of the test's bar, and keeps it for the report."""

_HEAD = """# Proven under faults

Each row is a promise of the deployment (a *bar*), and a test that tries to break it by faults injected for real: processes, signals,
sockets, Envoy and PostgreSQL. Written by `make soak` on {date}, on {machine}.
To repeat a row: its command. The short form of each runs in CI; a test's file says which mitigation makes it pass.

| bar | fault | figure | command |
| --- | --- | --- | --- |
"""


class Row(NamedTuple):
    """One line of the report."""

    number: int
    what: str
    test: str
    passed: bool
    figures: list[str]

    def __str__(self) -> str:
        figures = "; ".join([*([] if self.passed else ["**failed**"]), *self.figures])
        return f"| {self.number} | {self.what} | {figures} | `.venv/bin/pytest --long --timeout 7200 '{self.test}'` |\n"


class Report:
    """Written anew after each test, so that a run that does not end leaves what it has."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._rows: list[Row] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        bars: list[Any] = [value for name, value in report.user_properties if name == "bar"]
        if report.when == "call" and bars and not report.skipped:
            [(number, what)] = bars
            figures = [str(value) for name, value in report.user_properties if name == "figure"]
            self._rows.append(Row(number, what, report.nodeid, report.passed, figures))
            self._write()

    def _write(self) -> None:
        machine = f"{os.cpu_count()} cores, shared by clients and servers, {platform.system()}, CPython {platform.python_version()}"
        text = _HEAD.format(date=datetime.now(UTC).date(), machine=machine) + "".join(map(str, sorted(self._rows)))
        self._file.write_text(text, encoding="utf-8")
