"""Checks of the packages in the image: wheels for every supported CPython and platform, a bill of materials, and known vulnerabilities.

Usage: python -m requirements.check [--release]. An incomplete audit is an error with --release, and is only reported without it.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from service import VERSION

ROOT = Path(__file__).parents[1]
PRODUCTION = ROOT / "requirements" / "production.txt"
DEV = ROOT / "requirements" / "local.txt"
SBOM = ROOT / "build" / "sbom.cdx.json"

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
"""Architectures, with the oldest glibc."""


def check_wheels() -> None:
    """Resolve the pinned requirements to wheels for each CPython and platform, without installing them."""
    for version, platform, file in itertools.product(PYTHONS, PLATFORMS, (PRODUCTION, DEV)):
        with tempfile.TemporaryDirectory() as folder:
            _run(
                *("uv", "pip", "install", "--quiet", "--dry-run", "--target", folder, "--python-version", version),
                *("--python-platform", platform, "--only-binary", ":all:", "--require-hashes", "--requirement", str(file)),
            )
    print(f"Every requirement resolves to a wheel for CPython {', '.join(PYTHONS)} on {', '.join(PLATFORMS)}")


def write_sbom(file: Path) -> None:
    """Write a bill of materials in CycloneDX format, validated against its schema."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # cyclonedx-py does not resolve a dynamic version.
        project = Path(folder, "pyproject.toml")
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        project.write_text(text.replace('dynamic = ["version"]', f'version = "{VERSION}"', 1), encoding="utf-8")
        _run(
            *("cyclonedx_py", "requirements", str(PRODUCTION), "--pyproject", str(project)),
            *("--output-reproducible", "--validate", "--output-format", "JSON", "--output-file", str(file)),
        )
    print(f"Bill of materials: {file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}")


def audit(*, is_release: bool) -> str | None:
    """Query PyPI for known vulnerabilities of the requirements and return an error message, or None."""
    options = ["--format", "json", "--progress-spinner", "off", "--disable-pip", "--require-hashes", "--requirement", str(PRODUCTION)]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *options], check=False, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return judge([{"name": "all requirements", "skip_reason": lines[-1]}], is_release=is_release)
    return judge(report["dependencies"], is_release=is_release)


def judge(dependencies: list[dict[str, Any]], *, is_release: bool) -> str | None:
    """Return an error message for a report of pip-audit, or print its result and return None."""
    found = [
        f"{each['name']} {each['version']}: {vulnerability['id']}, fixed in {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for each in dependencies
        for vulnerability in each.get("vulns", ())
    ]
    if found:
        return "Known vulnerabilities:\n  " + "\n  ".join(found)
    skipped = [each for each in dependencies if "skip_reason" in each]
    if not skipped and dependencies:
        print(f"No known vulnerability in {len(dependencies)} requirements")
        return None
    reason = skipped[0]["skip_reason"] if skipped else "pip-audit returned an empty report"
    message = f"NOT AUDITED for known vulnerabilities: {len(skipped)} of {len(dependencies)} requirements. The first reason: {reason}"
    if is_release:
        return message
    print(f"{message}\nTo release, run make check RELEASE=1 on a machine that can reach PyPI's JSON API.")
    return None


def _run(module: str, *arguments: str) -> None:
    """Run a module of this environment, and exit with its status if it fails."""
    # cyclonedx warns that a list of requirements does not contain the dependencies between them.
    done = subprocess.run([sys.executable, "-W", "ignore::UserWarning", "-m", module, *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    check_wheels()
    write_sbom(SBOM)
    if error := audit(is_release="--release" in sys.argv[1:]):
        sys.exit(error)


if __name__ == "__main__":
    main()
