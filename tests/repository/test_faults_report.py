"""docs/faults.md against the tests that it reports."""

import re

from tests.support.repository import ROOT

_REPORT = ROOT / "docs" / "faults.md"
_ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.*) \| `.+ '(.+?)(?:\[.+?\])?'` \|$", re.MULTILINE)
_GUARANTEE = re.compile(r'@pytest\.mark\.guarantee\((\d+), "(.+?)"\)\n.*?def (\w+)\(', re.DOTALL)


def test_report_equals_the_tests() -> None:
    """The report has a row for each test of each guarantee, for no other test, and for none that failed."""
    rows = _ROW.findall(_REPORT.read_text(encoding="utf-8"))
    tests = {file: _GUARANTEE.findall(file.read_text(encoding="utf-8")) for file in (ROOT / "tests" / "acceptance").glob("test_*.py")}
    assert {int(number) for number, *_ in rows} == set(range(1, 19))
    assert {(number, what, test) for number, what, _, test in rows} == {
        (number, what, f"{file.relative_to(ROOT)}::{name}") for file, guarantees in tests.items() for number, what, name in guarantees
    }
    assert [measurement for _, _, measurement, _ in rows if not measurement or "**failed**" in measurement] == []
