"""docs/faults.md against the tests that it reports."""

import re

from tests.conftest import ROOT

_REPORT = ROOT / "docs" / "faults.md"


def test_every_bar_is_reported() -> None:
    """It has a row of each bar and of each of its tests, and of none that is gone."""
    report = _REPORT.read_text(encoding="utf-8")
    assert set(map(int, re.findall(r"^\| (\d+) \|", report, re.MULTILINE))) == set(range(1, 18))
    assert set(re.findall(r"`pytest --long '([^'\[]+)", report)) == {
        f"{file.relative_to(ROOT)}::{name}"
        for file in (ROOT / "tests" / "acceptance").glob("test_*.py")
        for name in re.findall(r"@pytest\.mark\.bar\(.*?def (\w+)\(", file.read_text(encoding="utf-8"), re.DOTALL)
    }
