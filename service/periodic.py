"""Periodic tasks: work that a server repeats in the background for as long as it runs."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import NamedTuple

from service.observability import logs


class PeriodicTask(NamedTuple):
    """An action and the pause after each run."""

    name: str
    action: Callable[[], Awaitable[object]]
    period: timedelta


async def run_periodically(task: PeriodicTask) -> None:
    """Run an action repeatedly until cancelled. Errors are logged and do not stop the task."""
    while True:
        try:
            await task.action()
        except Exception as exc:
            logs.event("periodic task failed", level="error", task=task.name, error=logs.describe(exc))
        await asyncio.sleep(task.period.total_seconds())
