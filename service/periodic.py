"""Periodic tasks: work that a server repeats in the background for as long as it runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import NamedTuple

from service.observability import logs

_CANCEL_S = 1.0  # a run that ignores its cancellation does not delay the shutdown for longer


class PeriodicTask(NamedTuple):
    """An action and the pause after each run."""

    name: str
    action: Callable[[], Awaitable[object]]
    period: timedelta


@contextlib.asynccontextmanager
async def running_periodically(*tasks: PeriodicTask) -> AsyncIterator[None]:
    """Repeat actions in the background. When the context is left, they are cancelled, and it waits until they have ended."""
    running = [asyncio.create_task(_repeat(task), name=task.name) for task in tasks]
    try:
        yield
    finally:
        for each in running:
            each.cancel()
        await asyncio.wait(running, timeout=_CANCEL_S)


async def _repeat(task: PeriodicTask) -> None:
    """Run an action repeatedly until this task is cancelled. Errors are logged and do not stop it."""
    while True:
        try:
            await task.action()
        except (Exception, asyncio.CancelledError) as exc:  # the cancellation may be that of something that the action waits for
            if (current := asyncio.current_task()) and current.cancelling():
                raise asyncio.CancelledError from exc
            logs.event("periodic task failed", level="error", task=task.name, error=logs.describe(exc))
        await asyncio.sleep(task.period.total_seconds())
