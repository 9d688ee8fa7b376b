"""`import walg` in its own process, and listings of WAL-G."""

import asyncio
import contextlib
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.commands import environment
from tests.support.repository import ROOT

FIRST_DAY = datetime(2020, 1, 1, tzinfo=UTC)


def listing(sizes: dict[int, int]) -> bytes:
    """Return a listing of WAL-G with a backup of the given size for each day since `FIRST_DAY`."""
    return json.dumps([_item(day, size) for day, size in sizes.items()]).encode()


def _item(day: int, size: int) -> dict[str, Any]:
    finished = FIRST_DAY + timedelta(days=day)
    return {
        "Name": f"backup_{finished:%Y%m%dT%H%M%SZ}",
        "start_time": f"{finished - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
        "finish_time": f"{finished:%Y-%m-%dT%H:%M:%SZ}",
        "compressed_size": size,
    }


class Importing:
    """A running import of cluster c1, whose standard input the test writes."""

    def __init__(self, url: str, log: Path, *options: str, folder: str = "f1") -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "import", "walg", "--folder-id", folder, "--cluster-id", "c1", *options],
                cwd=ROOT,
                env=environment(BACKUPS_DATABASE_URL=url),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._input = self._process.stdin
        assert self._input

    async def write(self, data: bytes, *, close: bool = True) -> None:
        """Write a part of the listing, and with `close`, end the input."""
        await asyncio.to_thread(self._write, data, close=close)

    def _write(self, data: bytes, *, close: bool) -> None:
        assert self._input
        with contextlib.suppress(BrokenPipeError):
            self._input.write(data)
            self._input.flush()
            if close:
                self._input.close()

    def kill(self) -> None:
        self._process.kill()

    async def wait(self) -> int:
        """Wait until the import exits; return its status."""
        status = await asyncio.to_thread(self._process.wait, 60)
        with contextlib.suppress(BrokenPipeError):
            assert self._input
            self._input.close()
        return status

    def printed(self) -> str:
        """Return the standard output and standard error of the import."""
        return self.log.read_text(encoding="utf-8")
