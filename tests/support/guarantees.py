"""Guarantees of the deployment under faults, `@pytest.mark.guarantee(number, fault)`, and the report that `make soak` writes about them."""

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest

Measure: TypeAlias = Callable[[str], None]
"""Prints a measurement of the test's guarantee, and keeps it for the report."""

_HEAD = """# Guarantees under faults

Each row is a guarantee of the deployment and a test that tries to break it.
The faults are real: processes, signals, sockets, Envoy and PostgreSQL.
Written by `make soak` on {date}, on {machine}.
The command repeats the measurement.
CI runs the short form of each test.
The docstring of a test's module names the code and settings that keep the guarantee.

| guarantee | fault | measurement | command |
| --- | --- | --- | --- |
"""


class Row(NamedTuple):
    """One line of the report."""

    number: int
    fault: str
    test: str
    passed: bool
    measurements: list[str]

    def __str__(self) -> str:
        measurements = "; ".join([*([] if self.passed else ["**failed**"]), *self.measurements])
        return f"| {self.number} | {self.fault} | {measurements} | `.venv/bin/pytest --long --timeout 7200 '{self.test}'` |\n"


class Report:
    """The report as a file; it is rewritten after each test, so that an interrupted run keeps its rows."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._rows: list[Row] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the row of a test that has a guarantee."""
        guarantees: list[Any] = [value for name, value in report.user_properties if name == "guarantee"]
        if report.when == "call" and guarantees and not report.skipped:
            [(number, fault)] = guarantees
            measurements = [str(value) for name, value in report.user_properties if name == "measurement"]
            self._rows.append(Row(number, fault, report.nodeid, report.passed, measurements))
            self._write()

    def _write(self) -> None:
        machine = f"{os.cpu_count()} cores, shared by clients and servers, {platform.system()}, CPython {platform.python_version()}"
        text = _HEAD.format(date=datetime.now(UTC).date(), machine=machine) + "".join(map(str, sorted(self._rows)))
        self._file.write_text(text, encoding="utf-8")
