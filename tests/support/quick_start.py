"""The commands of docs/quick-start-secured.md, run in a folder that substitutes /etc and the home folder."""

import os
import re
from pathlib import Path

from tests.support import processes
from tests.support.commands import environment
from tests.support.repository import ROOT

HOST = "backups.example.org"
_BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "quick-start-secured.md").read_text(encoding="utf-8"), re.DOTALL)
_START = next(number for number, block in enumerate(_BLOCKS) if block.startswith("docker "))


async def run_before_start(home: Path) -> None:
    """Run the commands before `docker compose`."""
    await _run(home, _BLOCKS[:_START])


async def run_all(home: Path, **variables: str) -> str:
    """Run all commands except those on other machines, and return their output."""
    return await _run(home, _BLOCKS[: _START + 1], **variables)


async def _run(home: Path, blocks: list[str], **variables: str) -> str:
    commands = "".join(blocks).replace("/etc/backups", f"{home}/etc/backups")
    if os.getuid() != 0:
        commands = re.sub(r" -o \w+ -g \w+", "", commands)
    done = await processes.run("/bin/sh", "-euc", commands, cwd=ROOT, env=environment(HOME=str(home), **variables))
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()
