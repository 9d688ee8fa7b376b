"""The marker `debian`: what a test that needs a Debian program does without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import ROOT

_TEST = """
import pytest

PACKAGE = "a-package"  # not written out below: CI installs what is

@pytest.mark.debian(PACKAGE, program="{program}")
def test_needs_it():
    print("it ran")
"""


@pytest.mark.parametrize(
    ("program", "required", "status", "says"),
    [
        ("sh", "1", 0, "1 passed"),
        ("/bin/sh", "", 0, "1 passed"),
        ("no-such-program", "", 0, "no-such-program is not installed: apt-get install a-package"),
        ("no-such-program", "1", 1, "no-such-program is not installed: apt-get install a-package (REQUIRE_DEBIAN is set)"),
    ],
)
def test_programs_that_are_missing(tmp_path: Path, program: str, required: str, status: int, says: str) -> None:
    """Such a test runs where its program is, by name or path; without it, it is skipped, or fails where REQUIRE_DEBIAN is set."""
    test = tmp_path / "test_it.py"
    test.write_text(_TEST.format(program=program), encoding="utf-8")
    configured: list[str | Path] = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-p", "tests.conftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *configured, test],
        cwd=ROOT,
        env={"PATH": os.defpath, "REQUIRE_DEBIAN": required},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, says in done.stdout) == (status, True), done.stdout
