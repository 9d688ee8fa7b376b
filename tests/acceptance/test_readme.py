"""Commands and code of README."""

import os
import re
import shutil
import sys
from collections.abc import AsyncIterator

import pytest

from tests.support.dev import Running, data_folder, running_dev
from tests.support.examples import Example, comparable, examples, output
from tests.support.repository import ROOT

_README = (ROOT / "README.md").read_text(encoding="utf-8")
_SHOWN = examples(ROOT / "README.md")
_PYTHON = re.findall(r"```python\n((?:.*\n)*?)```\n\n```text\n((?:.*\n)*?)```", _README)


@pytest.fixture(name="dev", scope="module")
async def _dev() -> AsyncIterator[Running]:
    """Yield one `dev` for all examples, because they only read."""
    with data_folder() as folder:
        async with running_dev(folder) as dev:
            yield dev


@pytest.mark.parametrize("example", [example for example in _SHOWN if example.command != "make run"], ids=lambda shown: shown.command[:40])
async def test_commands(dev: Running, example: Example) -> None:
    """Each command of README prints the output that README shows."""
    program = example.command.split()[0]
    if not (found := shutil.which(program, path=f"{os.environ['PATH']}:{ROOT}")):
        pytest.skip(f"{program} is not installed")
    command = example.command.replace(program, found, 1).replace("127.0.0.1:50051", dev.address)
    [url] = re.findall(r"BACKUPS_DATABASE_URL='(.+?)'", "\n".join(dev.lines))
    printed = await output("/bin/sh", "-c", command, BACKUPS_ADDRESS=dev.address, BACKUPS_DATABASE_URL=url)
    assert comparable(printed) == comparable(example.shown)


async def test_make_run(dev: Running) -> None:
    """`make run` prints the lines that README shows."""
    [(_, shown)] = [example for example in _SHOWN if example.command == "make run"]
    expected = shown.splitlines()
    assert [line.split()[0] for line in dev.lines] == [line.split()[0] for line in expected]
    assert dev.lines[0] == expected[0].replace("127.0.0.1:50051", dev.address)
    assert dev.lines[1].split(", data in ")[0] == expected[1].split(", data in ")[0]


async def test_python_example(dev: Running) -> None:
    """The Python example prints the output that README shows."""
    [(code, shown)] = _PYTHON
    assert await output(sys.executable, "-c", code.replace("127.0.0.1:50051", dev.address)) == shown
