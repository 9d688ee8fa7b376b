"""Periodic tasks."""

import asyncio
import json
from datetime import timedelta

import pytest

from service.periodic import PeriodicTask, run_periodically


async def test_loop_survives_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """An error of a run is logged without its text, and the next runs follow."""
    third = asyncio.Event()
    runs = 0

    async def fail() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            third.set()
        raise ValueError("secret")

    running = asyncio.ensure_future(run_periodically(PeriodicTask("fail", fail, timedelta(0))))
    async with asyncio.timeout(10):
        await third.wait()
    assert not running.done()
    running.cancel()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert "secret" not in "".join(lines)
    logged = json.loads(lines[0])
    assert (logged["event"], logged["level"], logged["task"]) == ("periodic task failed", "error", "fail")
    assert logged["error"][0]["type"] == "builtins.ValueError"


async def test_cancellation_ends_the_loop() -> None:
    """A cancelled task ends; cancellation is not an error of a run."""

    async def nothing() -> None:
        pass

    running = asyncio.ensure_future(run_periodically(PeriodicTask("nothing", nothing, timedelta(0))))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
