"""The process of a server, run within that of the tests."""

import asyncio
import gc
import json
import resource
import signal
from collections.abc import Iterator

import pytest

from service import process

_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # passed, so that the process of the tests does not ignore them


@pytest.fixture(name="descriptor_limit")
def _descriptor_limit() -> Iterator[int]:
    """Lower the soft limit of open files to 1,024, and yield the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptor_limit(descriptor_limit: int, capfd: pytest.CaptureFixture[str]) -> None:
    """A low soft limit of open files is raised to what the listeners may need, or to the hard limit if that is lower."""

    async def main() -> None:
        pass

    process.run(main(), stop_signals=_SIGNALS)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (
        1024 < soft == (process._DESCRIPTORS if descriptor_limit == resource.RLIM_INFINITY else min(process._DESCRIPTORS, descriptor_limit))
    )


def test_exceptions_that_are_never_awaited(capfd: pytest.CaptureFixture[str]) -> None:
    """An exception of a task that is never awaited, and another error of the event loop, are logged without their text."""

    async def fail() -> None:
        raise ZeroDivisionError("hunter2")

    async def main() -> None:
        asyncio.ensure_future(fail())  # noqa: RUF006  # nothing awaits it
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
        asyncio.get_running_loop().call_exception_handler({"message": "hunter2"})

    process.run(main(), stop_signals=_SIGNALS)
    text = capfd.readouterr().err
    logged = [json.loads(line) for line in text.splitlines()]
    assert [(line["event"], line["level"]) for line in logged] == [("unexpected error", "error")] * 2
    assert logged[0]["error"][0]["type"] == "builtins.ZeroDivisionError"
    assert "hunter2" not in text
