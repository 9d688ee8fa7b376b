"""The image's labels, the configuration of dependency updates, and the tests that SECURITY.md names."""

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from service import VERSION
from tests.support.repository import ROOT

_RENOVATE = json.loads((ROOT / "renovate.json").read_text(encoding="utf-8"))
_MANAGERS = {name: _RENOVATE[name]["managerFilePatterns"] for name in _RENOVATE["enabledManagers"] if name != "custom.regex"}
_SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def _files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [file for file in listed if (ROOT / file).is_file()]


def _managed(file: str, manager: str) -> bool:
    return any(re.search(pattern.strip("/"), file) for pattern in _MANAGERS[manager])


def test_image_labels() -> None:
    """The image's labels equal the project's version, description and license."""
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="(.*?)"', (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "version": VERSION,
        "licenses": project["license"],
        "revision": "${REVISION}",
    }


@pytest.mark.parametrize(
    ("manager", "declares"),
    [
        ("pip_requirements", r"^[a-z0-9-]+(\[[a-z,]+\])?==\S+ .*\\\n +--hash="),
        ("dockerfile", r"\A(#.*\n)*ARG BASE=\S+|\A(#.*\n)*FROM "),
        ("docker-compose", r"^services:(.*\n)*? +image: .*:"),
        ("kubernetes", r"^kind: (.*\n)*? +image: \S+:"),
        ("npm", r'\A\{(.*\n)*? +"dependencies": '),
        ("gomod", r"\Amodule (.*\n)*?require "),
    ],
)
def test_every_dependency_is_updated(manager: str, declares: str) -> None:
    """Every file that pins packages, modules or images is one that Renovate updates."""
    pinning = [file for file in _files() if Path(file).suffix not in (".py", ".md", ".lock") and "lock" not in Path(file).name]
    texts = {file: (ROOT / file).read_bytes().decode("utf-8", errors="replace")[:20_000] for file in pinning}
    declaring = {file for file, text in texts.items() if re.search(declares, text, re.MULTILINE)}
    assert declaring
    assert {file for file in declaring if not _managed(file, manager)} == set()


def test_tools_of_ci_are_updated() -> None:
    """The expression for tools that CI installs with Go matches each of them, with its module and version."""
    [custom] = _RENOVATE["customManagers"]
    expression = re.sub(r"\(\?<(\w+)>", r"(?P<\1>", custom["matchStrings"][0])
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert len(re.findall(expression, text)) == text.count("go install ")


def test_security_policy_names_existing_tests() -> None:
    """Every test that the threat model names exists, and every row of its tables names one."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", _SECURITY)
    assert named
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert test in functions, f"{file}::{test}"
    model = _SECURITY.partition("## Threat model")[2].splitlines()
    rows = [line for line in model if line.startswith("| ") and not line.startswith(("| Statement |", "| --- |"))]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []


def test_security_policy_covers_every_attacker() -> None:
    """The threat model has a section for each of the five attackers, and the supported versions name this one."""
    for attacker in ("An anonymous client", "A client with a token", "A cluster's operator", "A captured replica", "A network attacker"):
        assert f"### {attacker}\n" in _SECURITY
    assert f"| {VERSION.rpartition('.')[0]}.x |" in _SECURITY
