"""Processes that tests start."""

import signal
import subprocess

from tests.support import processes


async def test_a_process_and_its_pipes_end_with_the_block() -> None:
    """At the end of the block the process is killed and its pipes are closed, although something still refers to them."""
    program = ("/bin/sh", "-c", "echo ready; exec sleep 60")
    async with processes.running(*program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"

    assert process.returncode == -signal.SIGKILL
    started = process._process
    assert all(pipe and pipe.closed for pipe in (started.stdin, started.stdout, started.stderr))
