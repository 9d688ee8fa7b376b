"""Commands that are forked from a process that has imported the service."""

import asyncio
import os
import sys

import pytest

from tests.support import processes
from tests.support.commands import RunCommand, environment
from tests.support.repository import ROOT


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["--version"], b""),
        (["lsit"], b""),
        (["list", "--folder-id", "f", "--address", "none"], b""),
        (["import", "walg", "--folder-id", "f", "--cluster-id", "c"], b"[" * 1_000_000),
    ],
)
async def test_same_as_a_new_interpreter(command: RunCommand, arguments: list[str], stdin: bytes) -> None:
    """A command reads, prints and exits as `python -m service` does."""
    settings = {"BACKUPS_DATABASE_URL": "postgresql://u@127.0.0.1:1/d"}
    started = await processes.run(sys.executable, "-m", "service", *arguments, cwd=ROOT, env=environment(**settings), stdin=stdin)
    done = await command(*arguments, stdin=stdin, **settings)
    assert (done.status, done.stdout.encode(), done.stderr.encode()) == (started.returncode, started.stdout, started.stderr)


async def test_environments_are_separate(command: RunCommand) -> None:
    """Commands that run at the same time have only their own settings, and none of the test process."""
    os.environ["BACKUPS_AUTH"] = "nonsense"
    try:
        urls = ["", "postgresql://u@127.0.0.1:1/d?sslmode=other", "mysql://u@127.0.0.1/d"]
        ended = await asyncio.gather(*(command("status", **({"BACKUPS_DATABASE_URL": url} if url else {})) for url in urls))
    finally:
        del os.environ["BACKUPS_AUTH"]
    assert [done.status for done in ended] == [1, 1, 1]
    assert "BACKUPS_AUTH" not in "".join(done.stderr for done in ended)
    assert len({done.stderr for done in ended}) == 3
