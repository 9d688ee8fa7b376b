"""Links of the documents, the tables of settings, the changelog and the code in docs/clients.md."""

import ast
import fnmatch
import re
from pathlib import Path

import pytest

from service import VERSION
from service.setting_names import ENV_PREFIX, known_names
from service.settings import Settings
from tests.clients.programs import HERE, NAMES
from tests.support.repository import ROOT, named_tests, tracked_files

_CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
_CLIENTS = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
_CLIENT_CODE = re.findall(r"^\[tests/clients/(.+)\]\(.+\):\n\n```\w+\n((?:.*\n)*?)```", _CLIENTS, re.MULTILINE)
_SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def test_every_setting_is_listed() -> None:
    """The tables of docs/settings.md have each setting once, and nothing else."""
    cells = re.findall(r"^\| (`.+?) \| .+ \| .+ \|$", _SETTINGS, re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(rf"`({ENV_PREFIX}\w+)`", cell)]
    assert sorted(listed) == sorted(f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields)


def test_defaults_of_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults in docs/settings.md are those of the code, and `none` means that the setting has no value."""
    defaults = Settings.read().model_dump()
    cells = re.findall(rf"^\| `{ENV_PREFIX}(\w+)` \| (none|`.+?`)(?:;.*?)? \|", _SETTINGS, re.MULTILINE)
    assert {name for name, cell in cells if cell == "none" and defaults[name.lower()]} == set()
    values = {name: cell.strip("`") for name, cell in cells if cell != "none"}
    assert len(values) > 20
    for name, value in values.items():
        monkeypatch.setenv(f"{ENV_PREFIX}{name}", value)
    assert Settings.read().model_dump() == defaults


def test_every_variable_is_known() -> None:
    """Every variable `BACKUPS_*` in the code, the documents and the deployment files is known."""
    excluded = ("tests/", "service/pb/", "migrations/", "bench/results")
    files = [ROOT / file for file in tracked_files() if not file.startswith(excluded)]
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    mentioned = set(re.findall(r"\bBACKUPS_[A-Z0-9_]*[A-Z0-9]\b(?!\*)", text))
    assert mentioned - known_names(Settings.model_fields) == set()
    assert "BACKUPS_DATABASE_URL" in mentioned


def test_every_variable_of_other_programs_is_listed() -> None:
    """docs/clients.md lists each environment variable that the code reads and that does not begin with `BACKUPS_`."""
    files = [ROOT / file for file in tracked_files() if file.startswith("service/") and file.endswith(".py") and "/pb/" not in file]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    read = set(re.findall(r"environ(?:\.get\(|\[)f?\"(?!BACKUPS_)([A-Z_]+)", code))
    rows = re.findall(r"^\| (`.+?`) \| .+ \|$", _CLIENTS.partition("### Environment")[2].partition("### ")[0], re.MULTILINE)
    patterns = [name for row in rows for name in re.findall(r"`(\S+)`", row)]
    assert {"XDG_DATA_HOME", "OTEL_SDK_DISABLED"} <= read
    assert [name for name in read if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)] == []


def _anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {_anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), ROOT / "bench" / "README.md", *ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_links(page: Path) -> None:
    """Relative links lead to files that exist, and to headings in them."""
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", page.read_text(encoding="utf-8")):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), f"{target}#{anchor}"


def test_changelog() -> None:
    """The newest section of the changelog is for the current version."""
    sections = re.findall(r"^## \[(.+?)\]", _CHANGELOG, re.MULTILINE)
    assert next(section for section in sections if section != "Unreleased") == VERSION


@pytest.mark.parametrize(("file", "code"), _CLIENT_CODE, ids=[file for file, _ in _CLIENT_CODE])
def test_client_code(file: str, code: str) -> None:
    """Each code block of docs/clients.md equals the tested file that it links to."""
    assert code == (HERE / file).read_text(encoding="utf-8")


def test_every_client_is_documented() -> None:
    """docs/clients.md shows the code of each tested client and its pinned version."""
    assert {file.rpartition("/")[0].replace("/", "_") for file, _ in _CLIENT_CODE} == {*NAMES, "go_calls"}
    pins = {
        "python/requirements.txt": r"^yandexcloud==(\S+)",
        "node/package.json": r'"@yandex-cloud/nodejs-sdk": "(\S+)"',
        "go/v1/go.mod": r"^\s*github.com/yandex-cloud/go-sdk (\S+)",
        "go/v2/go.mod": r"^\s*github.com/yandex-cloud/go-sdk/v2 (\S+)",
    }
    for file, pattern in pins.items():
        found = re.search(pattern, (HERE / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert found
        assert f"| {found[1]} |" in _CLIENTS


def test_slow_tests_are_named() -> None:
    """The ten slowest tests of CONTRIBUTING.md exist, and are marked so that they start first."""
    tests = named_tests((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(tests) == 10
    for test in tests:
        assert "pytest.mark.slow" in [ast.unparse(decorator) for decorator in test.decorator_list], test.name
