"""The thread that writes the log."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from service.observability.log_writer import CAPACITY, LogWriter
from tests.support.eventually import eventually

_LINE = "x" * 1023 + "\n"


@pytest.fixture(name="pipe", params=[True, False], ids=["blocking", "non-blocking"])
def _pipe(request: pytest.FixtureRequest) -> Iterator[tuple[TextIO, TextIO]]:
    """Yield the ends of a pipe for reading and for writing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, request.param)
    with os.fdopen(reader, encoding="utf-8") as read, os.fdopen(writer, "w", encoding="utf-8") as write:
        yield read, write


def _report(count: int) -> str:
    return f"dropped {count}\n"


def test_a_pipe_that_is_not_read(pipe: tuple[TextIO, TextIO]) -> None:
    """While a pipe is full, lines wait up to the capacity, further ones are dropped, and their number is logged later."""
    reader, stream = pipe
    writer = LogWriter(stream, report=_report)
    for _ in range(2 * CAPACITY // len(_LINE)):
        writer.write(_LINE)
    dropped = writer.dropped
    assert 0 < dropped <= CAPACITY // len(_LINE)

    lines: list[str] = []
    while not lines or lines[-1] == _LINE:
        lines.append(reader.readline())
    assert lines[-1] == _report(dropped)
    while len(lines) + dropped <= 2 * CAPACITY // len(_LINE):
        lines.append(reader.readline())
    assert writer.close()
    assert lines.count(_LINE) + dropped == 2 * CAPACITY // len(_LINE)
    assert writer.dropped == dropped


def test_close_of_a_pipe_that_is_not_read(pipe: tuple[TextIO, TextIO]) -> None:
    """Closing the writer does not wait for a pipe that is never read, and later lines do not wait either."""
    _, stream = pipe
    writer = LogWriter(stream, report=_report)
    for _ in range(CAPACITY // len(_LINE)):
        writer.write(_LINE)
    assert not writer.close()
    writer.write(_LINE)


async def test_close_writes_the_waiting_lines(pipe: tuple[TextIO, TextIO]) -> None:
    """Closing the writer writes the lines that wait, in their order."""
    reader, stream = pipe
    writer = LogWriter(stream, report=_report)
    for number in range(100):
        writer.write(f"{number}\n")
    await eventually(writer.close, True)  # a second is too short for the thread of a busy machine
    stream.close()
    assert reader.read().splitlines() == [str(number) for number in range(100)]


async def test_a_full_disk() -> None:
    """Lines that cannot be written to a full disk are counted."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        writer = LogWriter(full, report=_report)
        for _ in range(3):
            writer.write("a\nb\n")
        await eventually(lambda: writer.dropped, 6)
        assert writer.close()


# The limit of the file size applies to the whole process, so this runs in another process.
_PARTLY_WRITTEN = """
import resource, sys, time
from service.observability.log_writer import LogWriter

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

limit(6)
writer = LogWriter(sys.stdout, report="dropped {}\\n".format)
writer.write("one\\ntwo\\nthree\\n")
while not writer.dropped:
    time.sleep(0.001)
limit(resource.RLIM_INFINITY)  # also for the file that coverage writes at the exit
writer.write("four\\n")
assert writer.close()
"""


def test_a_line_that_is_written_in_part(tmp_path: Path) -> None:
    """The line that follows a partly written one starts on a new line."""
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        subprocess.run([sys.executable, "-c", _PARTLY_WRITTEN], stdout=log, check=True, timeout=60)
        log.seek(0)
        assert log.read() == "one\ntw\nfour\ndropped 2\n"
