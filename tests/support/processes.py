"""Processes that tests start, without blocking the event loop.

asyncio's own subprocesses are not used: uvloop forks the interpreter, and a child of a process with gRPC's threads may hang.
"""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, TypeVar

_T = TypeVar("_T")

# Not asyncio's default threads: a read occupies its thread until the process writes.
_threads = ThreadPoolExecutor(64)


async def in_thread(function: Callable[..., _T], *arguments: object) -> _T:
    """Call a function that blocks."""
    return await asyncio.get_running_loop().run_in_executor(_threads, function, *arguments)


class Stream:
    """Output of a process; see `asyncio.StreamReader`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    async def readline(self) -> bytes:
        return await in_thread(self._stream.readline)

    async def read(self) -> bytes:
        return await in_thread(self._stream.read)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line


class Process:
    """A running process; see `asyncio.subprocess.Process`."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.popen = process
        self.stdout = Stream(process.stdout) if process.stdout else None
        self.stderr = Stream(process.stderr) if process.stderr else None
        self.send_signal, self.kill = process.send_signal, process.kill

    @property
    def returncode(self) -> int | None:
        return self.popen.poll()

    async def wait(self) -> int:
        return await in_thread(self.popen.wait)


@contextlib.asynccontextmanager
async def running(*command: object, **options: Any) -> AsyncIterator[Process]:
    """Start a program with the options of `subprocess.Popen`.

    When the block ends, a process that still runs is killed, and its pipes are closed. They are not left to the garbage collector:
    it may finalize a pipe's file before the pipe, which warns of a file that was not closed.
    """
    process = await in_thread(lambda: subprocess.Popen([str(each) for each in command], **options))
    try:
        yield Process(process)
    finally:
        await in_thread(_stop, process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with process:  # closes its pipes and waits for it
        process.kill()


async def run(*command: object, stdin: bytes = b"", **options: Any) -> "subprocess.CompletedProcess[bytes]":
    """Run a program until it exits, and return its status and output; options are those of `subprocess.run`."""
    arguments = [str(each) for each in command]
    return await in_thread(lambda: subprocess.run(arguments, input=stdin, check=False, **{"capture_output": True} | options))
