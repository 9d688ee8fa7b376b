"""Examples of the documentation: what a page shows, and what happens."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.support import processes
from tests.support.commands import environment
from tests.support.repository import ROOT


class Example(NamedTuple):
    """A command of a page, and what the page says that it prints."""

    command: str
    shown: str


def examples(page: Path) -> list[Example]:
    """The blocks of a page that show one command and its output."""
    return [Example(*found) for found in re.findall(r"```console\n\$ (.+)\n((?:.*\n)*?)```", page.read_text(encoding="utf-8"))]


def comparable(text: str) -> str:
    """Without what differs from run to run: ages, times of imports, the ids of requests, and how wide these make a column."""
    text = re.sub(r"\d+  +\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  +[\dsmhd ]+$", "IMPORTED", text, flags=re.MULTILINE)
    text = re.sub(r"(\d\dZ) +\d\S*( \d+\S)? ", r"\1  AGE ", text)
    text = re.sub(r"(was completed|last import was) .+? ago", r"\1 AGE ago", text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", text)
    return re.sub(r"(?<=\S)  +", "  ", text)


async def output(*command: str, **settings: str) -> str:
    """Return what a command prints to standard output and standard error."""
    env = environment(PYTHONPATH=str(ROOT), **settings)
    done = await processes.run(*command, cwd=ROOT, env=env, capture_output=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.decode()
