"""Bill of materials of the image, and the result of the audit of its requirements."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from requirements.check import PLATFORMS, PRODUCTION, PYTHONS, judge, write_sbom
from service import VERSION
from tests.support.repository import ROOT

_SAFE: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
_SKIPPED: dict[str, Any] = {"name": "b", "skip_reason": "timed out"}
_VULNERABLE: dict[str, Any] = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}


@pytest.mark.slow
def test_bill_of_materials(tmp_path: Path) -> None:
    """The bill of materials is valid CycloneDX for the current version, and lists each pinned requirement with its version and hashes."""
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


def test_supported_platforms() -> None:
    """docs/installing.md names the versions of CPython and glibc and the architectures for which the requirements are checked."""
    page = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", page, re.MULTILINE))
    assert rows["CPython"] == ", ".join(PYTHONS)
    architectures, glibc = zip(*(platform.split("-manylinux_") for platform in PLATFORMS), strict=True)
    assert re.findall(r"`(\w+)`", rows["architecture"]) == list(architectures)
    assert re.findall(r"glibc ([\d.]+)", rows["operating system"]) == [version.replace("_", ".") for version in {*glibc}]


def test_safe(capsys: pytest.CaptureFixture[str]) -> None:
    """Audited requirements without vulnerabilities pass, in a release too."""
    assert judge([_SAFE], is_release=True) is None
    assert capsys.readouterr().out == "No known vulnerability in 1 requirements\n"


@pytest.mark.parametrize("is_release", [True, False])
def test_vulnerable(is_release: bool) -> None:
    """A known vulnerability always fails, and the message names the package and the fixed version."""
    assert judge([_SAFE, _SKIPPED, _VULNERABLE], is_release=is_release) == "Known vulnerabilities:\n  c 2: CVE-1, fixed in 2.1"


@pytest.mark.parametrize(("dependencies", "count"), [([_SAFE, _SKIPPED], "1 of 2"), ([], "0 of 0")])
def test_not_audited(dependencies: list[dict[str, Any]], count: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An incomplete audit is reported, and fails a release."""
    assert judge(dependencies, is_release=False) is None
    assert f"NOT AUDITED for known vulnerabilities: {count} requirements" in capsys.readouterr().out
    assert str(judge(dependencies, is_release=True)).startswith("NOT AUDITED")
