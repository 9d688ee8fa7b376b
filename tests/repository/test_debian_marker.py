"""The marker `debian` of tests that need a Debian program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import ROOT

_TESTS = """
import pytest

PACKAGE = "a-package"  # not a literal below: CI installs the packages of literals

@pytest.mark.debian(PACKAGE, program="sh")
def test_program_on_the_path():
    pass

@pytest.mark.debian(PACKAGE, program="/bin/sh")
def test_program_with_a_path():
    pass

@pytest.mark.debian(PACKAGE, program="no-such-program")
def test_missing_program():
    pass
"""
_MISSING_MESSAGE = "no-such-program is not installed: apt-get install a-package"


@pytest.mark.parametrize(
    ("required", "status", "shown"),
    [
        ("", 0, ["2 passed, 1 skipped", _MISSING_MESSAGE]),
        ("1", 1, ["2 passed, 1 error", f"{_MISSING_MESSAGE} (REQUIRE_DEBIAN is set)"]),
    ],
)
def test_missing_programs(tmp_path: Path, required: str, status: int, shown: list[str]) -> None:
    """A test runs if its program is installed; otherwise it is skipped, or fails if REQUIRE_DEBIAN is set."""
    tests = tmp_path / "test_programs.py"
    tests.write_text(_TESTS, encoding="utf-8")
    configured: list[str | Path] = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-p", "tests.conftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *configured, tests],
        cwd=ROOT,
        env={"PATH": os.defpath, "REQUIRE_DEBIAN": required},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, [text for text in shown if text not in done.stdout]) == (status, []), done.stdout
