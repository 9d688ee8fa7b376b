"""`backup-service dev` in its own process."""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO

from service.dev.embedded_postgres import EmbeddedPostgres
from tests.support import processes
from tests.support.commands import environment
from tests.support.postgres import temporary_folder
from tests.support.repository import ROOT

DEV = (sys.executable, "-m", "service", "dev")


class Running:
    """Running `dev`, and the lines that it printed."""

    def __init__(self, process: processes.Process, lines: list[str]) -> None:
        self.process, self.lines = process, lines
        self.address = re.split(r"\s+", lines[0])[1]

    async def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 30)


@contextlib.contextmanager
def data_folder(name: str = "data") -> Iterator[Path]:
    """Yield the path of a data folder that does not exist yet, and remove it afterwards."""
    with temporary_folder() as parent:
        yield parent / name
        EmbeddedPostgres(parent / name).remove()


def dev_process(
    folder: Path, stdout: int | IO[bytes] = subprocess.PIPE, /, **settings: str
) -> contextlib.AbstractAsyncContextManager[processes.Process]:
    """Start `dev` over a data folder, on a free port."""
    return processes.running(
        *DEV,
        cwd=ROOT,
        env=environment(**{"BACKUPS_LISTEN": "127.0.0.1:0", "BACKUPS_DATA_FOLDER": str(folder)} | settings),
        stdout=stdout,
    )


@contextlib.asynccontextmanager
async def running_dev(folder: Path, **settings: str) -> AsyncIterator[Running]:
    """Start `dev` as `dev_process` does, wait until it serves, and interrupt it when the block ends."""
    async with dev_process(folder, **settings) as process:
        assert process.stdout
        try:
            lines: list[str] = []
            async with asyncio.timeout(60):
                while not lines or not lines[-1].startswith("Stop"):
                    lines.append((await process.stdout.readline()).decode().rstrip())
                    assert lines[-1], "dev exited: see its standard error"
            yield Running(process, lines)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
                await asyncio.wait_for(process.wait(), 30)
