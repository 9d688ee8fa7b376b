"""Processes that tests start, with asyncio's interface.

Not by asyncio itself: uvloop forks the interpreter to start one, and the child of a process with gRPC's threads may never get further.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, TypeVar

_T = TypeVar("_T")

_threads = ThreadPoolExecutor(64)  # of their own: each that reads from a process is taken until that says something


async def _in_thread(function: Callable[..., _T], *arguments: object) -> _T:
    return await asyncio.get_running_loop().run_in_executor(_threads, function, *arguments)


class Stream:
    """What a process says."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def __del__(self) -> None:
        self._stream.close()

    async def readline(self) -> bytes:
        return await _in_thread(self._stream.readline)

    async def read(self) -> bytes:
        return await _in_thread(self._stream.read)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line


class Process:
    """A process that has been started; see `asyncio.subprocess.Process`."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.stdout = Stream(process.stdout) if process.stdout else None
        self.stderr = Stream(process.stderr) if process.stderr else None
        self.send_signal, self.kill = process.send_signal, process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    async def wait(self) -> int:
        return await _in_thread(self._process.wait)

    async def communicate(self, stdin: bytes | None = None) -> tuple[bytes, bytes]:
        return await _in_thread(self._process.communicate, stdin)


async def start(*command: object, **how: Any) -> Process:
    """Starts a program; `how` is what `subprocess.Popen` takes."""
    return Process(await _in_thread(lambda: subprocess.Popen([str(each) for each in command], **how)))
