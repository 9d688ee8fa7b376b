"""The report in Debian's headless Chromium, with axe-core."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import browser, processes
from tests.support.commands import RunCommand, unmeasured_environment
from tests.support.debian import debian_program
from tests.support.report_catalog import load_sample
from tests.support.report_pages import HOSTILE_NAMES, hostile_html
from tests.support.repository import ROOT

pytestmark = [pytest.mark.debian("chromium-headless-shell", program="chromium-headless-shell"), pytest.mark.timeout(300)]

_AXE = ROOT / ".clients" / "axe" / "node_modules" / "axe-core" / "axe.min.js"


async def _inspect(file: Path, home: Path) -> list[dict[str, Any]]:
    """Return the findings of Chromium at each width, in each colour scheme."""
    if not _AXE.exists():
        reason = "axe-core is not installed: make clients"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    command = (sys.executable, "-m", "tests.support.browser", debian_program("chromium-headless-shell"), file, _AXE)
    done = await processes.run(*command, cwd=ROOT, env=unmeasured_environment(HOME=str(home)))
    assert done.returncode == 0, done.stderr.decode()
    inspections: list[dict[str, Any]] = json.loads(done.stdout)
    assert [(each["width"], each["scheme"]) for each in inspections] == [(w, s) for w in browser.WIDTHS for s in browser.SCHEMES]
    return inspections


def _check(inspections: list[dict[str, Any]], file: Path) -> None:
    for inspection in inspections:
        where = (inspection["width"], inspection["scheme"])
        assert inspection["violations"] == [], where
        assert inspection["overflowing"] == [], where
        assert inspection["scroll_width"] <= inspection["width"], where
        assert inspection["requests"] == [f"file://{file}"], where
        assert inspection["messages"] == [], where


async def test_report(command: RunCommand, import_url: str, database_url: str, tmp_path: Path) -> None:
    """The report of a catalog has no overflow at 360, 768 and 1,440 pixels and no violation of axe-core in both themes, and loads nothing.

    It is printed in the light theme.
    """
    await load_sample(import_url)
    file = tmp_path / "report.html"
    done = await command("report", "--output", str(file), "--days", "365", "--max-age", "2d", BACKUPS_DATABASE_URL=database_url)
    assert done.status == 0
    inspections = await _inspect(file, tmp_path)
    _check(inspections, file)
    assert {each["scheme"]: each["background"] for each in inspections} == {"light": "rgb(245, 246, 248)", "dark": "rgb(17, 21, 26)"}
    assert {each["printed_background"] for each in inspections} == {"rgb(255, 255, 255)"}


async def test_hostile_names(tmp_path: Path) -> None:
    """A page with hostile names runs no script, loads nothing, has no overflow, and shows the names as text."""
    file = tmp_path / "report.html"
    file.write_text(await hostile_html(*HOSTILE_NAMES), encoding="utf-8")
    inspections = await _inspect(file, tmp_path)
    _check(inspections, file)
    for name in HOSTILE_NAMES:
        shown = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in name)
        assert all(inspection["text"].count(shown) >= 5 for inspection in inspections), shown[:100]
