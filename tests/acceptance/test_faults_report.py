"""docs/faults.md against the tests that it reports."""

import re

from tests.support.repository import ROOT

_REPORT = ROOT / "docs" / "faults.md"
_ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.*) \| `.+ '(.+?)(?:\[.+?\])?'` \|$", re.MULTILINE)
_BAR = re.compile(r'@pytest\.mark\.bar\((\d+), "(.+?)"\)\n.*?def (\w+)\(', re.DOTALL)


def test_every_bar_is_reported() -> None:
    """It has a row of each bar and of each of its tests as they are now, of none that is gone, and of none that failed."""
    rows = _ROW.findall(_REPORT.read_text(encoding="utf-8"))
    tests = {file: _BAR.findall(file.read_text(encoding="utf-8")) for file in (ROOT / "tests" / "acceptance").glob("test_*.py")}
    assert {int(number) for number, *_ in rows} == set(range(1, 19))
    assert {(number, what, test) for number, what, _, test in rows} == {
        (number, what, f"{file.relative_to(ROOT)}::{name}") for file, bars in tests.items() for number, what, name in bars
    }
    assert [figure for _, _, figure, _ in rows if not figure or "**failed**" in figure] == []
