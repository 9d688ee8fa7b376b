"""What the image brings in: whether there are wheels for every supported CPython, a bill of materials, and known vulnerabilities.

Usage: check.py [--release]. In a release, what could not be audited is a failure; else it is only said.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PRODUCTION = ROOT / "requirements" / "production.txt"
SBOM = ROOT / "build" / "sbom.cdx.json"

PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def check_wheels() -> None:
    """Resolves the pinned requirements for each CPython, on this platform, without a compiler; nothing is installed."""
    for version in PYTHONS:
        with tempfile.TemporaryDirectory() as folder:
            _run(
                *("pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run", "--ignore-installed", "--target", folder),
                *("--python-version", version, "--only-binary=:all:", "--require-hashes", "--requirement", str(PRODUCTION)),
            )
        print(f"CPython {version}: every requirement resolves to a wheel")


def write_sbom(file: Path) -> None:
    """Writes a CycloneDX bill of materials, which its own schema has been held to."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _run(
        *("cyclonedx_py", "requirements", str(PRODUCTION), "--pyproject", str(ROOT / "pyproject.toml")),
        *("--output-reproducible", "--validate", "--output-format", "JSON", "--output-file", str(file)),
    )
    print(f"Bill of materials: {file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}")


def audit(*, is_release: bool) -> str | None:
    """Asks PyPI which of the requirements are known to be vulnerable; gives what is wrong, if anything is."""
    options = ["--format", "json", "--progress-spinner", "off", "--disable-pip", "--require-hashes", "--requirement", str(PRODUCTION)]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *options], check=False, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return judge([{"name": "everything", "skip_reason": lines[-1]}], is_release=is_release)
    return judge(report["dependencies"], is_release=is_release)


def judge(dependencies: list[dict[str, Any]], *, is_release: bool) -> str | None:
    """What is wrong with a report of pip-audit, if anything is; prints the rest."""
    found = [
        f"{each['name']} {each['version']}: {vulnerability['id']}, fixed in {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for each in dependencies
        for vulnerability in each.get("vulns", ())
    ]
    if found:
        return "Known vulnerabilities:\n  " + "\n  ".join(found)
    skipped = [each for each in dependencies if "skip_reason" in each]
    if skipped or not dependencies:
        reason = skipped[0]["skip_reason"] if skipped else "pip-audit has looked at nothing"
        message = f"NOT AUDITED for known vulnerabilities: {len(skipped)} of {len(dependencies)} requirements. The first: {reason}"
        if is_release:
            return message
        print(f"{message}\nA release needs a machine that reaches PyPI's JSON API: make check RELEASE=1 fails without.")
    else:
        print(f"No known vulnerability in {len(dependencies)} requirements")
    return None


def _run(module: str, *arguments: str) -> None:
    """A module of this environment; it tells itself what went wrong, and that is the end."""
    # cyclonedx warns that a list of requirements does not say which of them needs which.
    done = subprocess.run([sys.executable, "-W", "ignore::UserWarning", "-m", module, *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    check_wheels()
    write_sbom(SBOM)
    if wrong := audit(is_release="--release" in sys.argv[1:]):
        sys.exit(wrong)


if __name__ == "__main__":
    main()
