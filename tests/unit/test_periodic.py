"""Periodic tasks."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from service.periodic import PeriodicTask, running_periodically


def _task(action: Callable[[], Awaitable[object]]) -> PeriodicTask:
    return PeriodicTask("test", action, timedelta(0))


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_the_task_survives_errors(capsys: pytest.CaptureFixture[str], error: type[BaseException]) -> None:
    """An error of a run, or the cancellation of something that it waits for, is logged without its text, and the next runs follow."""
    third = asyncio.Event()
    runs = 0

    async def fail() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            third.set()
        raise error("secret")

    async with running_periodically(_task(fail)), asyncio.timeout(10):
        await third.wait()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert "secret" not in "".join(lines)
    logged = json.loads(lines[0])
    assert (logged["event"], logged["level"], logged["task"]) == ("periodic task failed", "error", "test")
    assert logged["error"][0]["type"] == f"{error.__module__}.{error.__name__}"


@pytest.mark.parametrize("error", [None, ValueError])
async def test_the_end_of_the_context_ends_the_task(capsys: pytest.CaptureFixture[str], error: type[BaseException] | None) -> None:
    """When the context is left, a run is cancelled and has ended, even if it fails when it is cancelled; nothing is logged."""
    started = asyncio.Event()
    ended = False

    async def wait() -> None:
        nonlocal ended
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended = True
            if error:
                raise error

    async with running_periodically(_task(wait)), asyncio.timeout(10):
        await started.wait()
    assert ended
    assert "test" not in {task.get_name() for task in asyncio.all_tasks()}
    assert capsys.readouterr().err == ""


async def test_a_run_that_ignores_its_cancellation(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that goes on after its cancellation delays the end of the context by a second at most."""
    started, release = asyncio.Event(), asyncio.Event()

    async def ignore() -> None:
        started.set()
        try:
            await release.wait()
        except asyncio.CancelledError:
            await release.wait()

    async with asyncio.timeout(10):
        async with running_periodically(_task(ignore)):
            await started.wait()
    release.set()
