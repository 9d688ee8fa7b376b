"""Examples in the documentation, and their comparison with the output of the commands."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.support import processes
from tests.support.commands import environment
from tests.support.repository import ROOT


class Example(NamedTuple):
    """Command in a page, and its output there."""

    command: str
    shown: str


def examples(page: Path) -> list[Example]:
    """Return the blocks of a page that show one command and its output."""
    return [Example(*found) for found in re.findall(r"```console\n\$ (.+)\n((?:.*\n)*?)```", page.read_text(encoding="utf-8"))]


def comparable(text: str) -> str:
    """Return the text without values that differ between runs: ages, times of imports, request ids, and the width of their columns."""
    text = re.sub(r"\d+  +\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  +[\dsmhd ]+$", "IMPORTED", text, flags=re.MULTILINE)
    text = re.sub(r"(\d\dZ) +\d\S*( \d+\S)? ", r"\1  AGE ", text)
    text = re.sub(r"(\d\dZ  AGE)(?: +(?:-|\d+[dhms](?: \d+[hms])?)){2}(?= +(?:base|incremental|-) )", r"\1", text)  # of `status`
    text = re.sub(r"\bage=\d+s", "age=AGE", text)  # of `status --nagios`
    text = re.sub(r"(was completed|last import was) .+? ago", r"\1 AGE ago", text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", text)
    return re.sub(r"(?<=\S)  +", "  ", text)


async def output(*command: str, **settings: str) -> str:
    """Return the text that a command prints to standard output and standard error."""
    env = environment(PYTHONPATH=str(ROOT), **settings)
    done = await processes.run(*command, cwd=ROOT, env=env, capture_output=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.decode()
