"""Processes that tests start."""

import signal
import subprocess

from tests.support import processes


async def test_process_and_pipes_are_closed_after_the_block() -> None:
    """When the block ends, the process is killed and its pipes are closed, although they are still referenced."""
    program = ("/bin/sh", "-c", "echo ready; exec sleep 60")
    async with processes.running(*program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"

    assert process.returncode == -signal.SIGKILL
    popen = process.popen
    assert all(pipe and pipe.closed for pipe in (popen.stdin, popen.stdout, popen.stderr))
