"""Version, image labels and the configuration of dependency updates."""

import json
import re
import tomllib
from pathlib import Path

import pytest

import service
from service import VERSION
from tests.support.repository import ROOT, tracked_files

_RENOVATE = json.loads((ROOT / "renovate.json").read_text(encoding="utf-8"))
_MANAGERS = {name: _RENOVATE[name]["managerFilePatterns"] for name in _RENOVATE["enabledManagers"] if name != "custom.regex"}
_PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _managed(file: str, manager: str) -> bool:
    return any(re.search(pattern.strip("/"), file) for pattern in _MANAGERS[manager])


def test_version_is_defined_once() -> None:
    """pyproject.toml has no version of its own: the build reads the version of the package `service`."""
    assert "version" not in _PYPROJECT["project"]
    assert _PYPROJECT["project"]["dynamic"] == ["version"]
    assert _PYPROJECT["tool"]["hatch"]["version"] == {"path": str(Path(service.__file__).relative_to(ROOT))}


def test_image_labels() -> None:
    """The image's labels equal the project's version, description and license."""
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="(.*?)"', (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    project = _PYPROJECT["project"]
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
    pinning = [file for file in tracked_files() if Path(file).suffix not in (".py", ".md", ".lock") and "lock" not in Path(file).name]
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
