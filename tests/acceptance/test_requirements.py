"""What the image brings in: its bill of materials, and what is made of an audit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from requirements.check import PRODUCTION, ROOT, judge, write_sbom
from service import VERSION

_SOUND: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
_SKIPPED: dict[str, Any] = {"name": "b", "skip_reason": "no answer"}
_VULNERABLE: dict[str, Any] = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}


def test_bill_of_materials(tmp_path: Path) -> None:
    """It is valid CycloneDX, is of this version, and has every pinned requirement, with its version and its hashes."""
    file = tmp_path / "sbom.json"
    write_sbom(file)
    text = file.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["version"]) == ("greenplum-backup-service", VERSION)
    pinned = set(re.findall(r"^([a-z0-9-]+)==([^ ]+)", PRODUCTION.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(pinned) > 20
    assert {(component["name"], component["version"]) for component in bill["components"]} == pinned
    assert all(component["externalReferences"][0]["hashes"] for component in bill["components"])


def test_changelog() -> None:
    """This version has its section, the newest, in the changelog."""
    sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(section for section in sections if section != "Unreleased") == VERSION


def test_sound(capsys: pytest.CaptureFixture[str]) -> None:
    """What was audited and is sound passes, in a release too."""
    assert judge([_SOUND], is_release=True) is None
    assert capsys.readouterr().out == "No known vulnerability in 1 requirements\n"


@pytest.mark.parametrize("is_release", [True, False])
def test_vulnerable(is_release: bool) -> None:
    """A known vulnerability always fails, whatever else could not be audited; it is named, with what mends it."""
    assert judge([_SOUND, _SKIPPED, _VULNERABLE], is_release=is_release) == "Known vulnerabilities:\n  c 2: CVE-1, fixed in 2.1"


@pytest.mark.parametrize(("dependencies", "count"), [([_SOUND, _SKIPPED], "1 of 2"), ([], "0 of 0")])
def test_not_audited(dependencies: list[dict[str, Any]], count: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What could not be audited is said, and fails a release."""
    assert judge(dependencies, is_release=False) is None
    assert f"NOT AUDITED for known vulnerabilities: {count} requirements" in capsys.readouterr().out
    assert str(judge(dependencies, is_release=True)).startswith("NOT AUDITED")
