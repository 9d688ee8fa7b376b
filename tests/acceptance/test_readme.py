"""What README shows is what happens."""

import os
import re
import shutil
import sys

import pytest

from service.setting_names import ENV_PREFIX
from service.settings import Settings
from tests.acceptance.test_dev import StartDev, _dev, _folder  # noqa: F401  # fixtures
from tests.support.examples import Example, comparable, examples, output
from tests.support.repository import ROOT

_README = (ROOT / "README.md").read_text(encoding="utf-8")
_SHOWN = examples(ROOT / "README.md")
_PYTHON = re.findall(r"```python\n((?:.*\n)*?)```\n\n```text\n((?:.*\n)*?)```", _README)


@pytest.mark.parametrize("example", [example for example in _SHOWN if example.command != "make run"], ids=lambda shown: shown.command[:40])
async def test_commands(dev: StartDev, example: Example) -> None:
    """Each command that README shows prints what README shows."""
    program = example.command.split()[0]
    if not (found := shutil.which(program, path=f"{os.environ['PATH']}:{ROOT}")):
        pytest.skip(f"{program} is not installed")
    command = example.command.replace(program, found, 1)
    async with dev() as running:
        command = command.replace("127.0.0.1:50051", running.address)
        assert comparable(await output("/bin/sh", "-c", command, BACKUPS_ADDRESS=running.address)) == comparable(example.shown)


async def test_make_run(dev: StartDev) -> None:
    """`make run` greets as README shows."""
    [(_, shown)] = [example for example in _SHOWN if example.command == "make run"]
    async with dev() as running:
        expected = shown.splitlines()
        assert [line.split()[0] for line in running.lines] == [line.split()[0] for line in expected]
        assert running.lines[0] == expected[0].replace("127.0.0.1:50051", running.address)
        assert running.lines[1].split(", data in ")[0] == expected[1].split(", data in ")[0]


async def test_python_example(dev: StartDev) -> None:
    """The Python client prints what README shows."""
    [(code, shown)] = _PYTHON
    async with dev() as running:
        assert await output(sys.executable, "-c", code.replace("127.0.0.1:50051", running.address)) == shown


def test_every_setting_is_listed() -> None:
    """The table of settings has every setting, and no other."""
    listed = [name for row in re.findall(r"^\| (`.+?) \|", _README, re.MULTILINE) for name in re.findall(rf"`({ENV_PREFIX}\w+)`", row)]
    assert sorted(listed) == sorted(f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields)


def test_links() -> None:
    """Relative links lead to files."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bench" / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
