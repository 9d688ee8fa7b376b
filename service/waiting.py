"""Helpers for waiting in the event loop."""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

_STEPS = 10


async def sleep_in_steps(duration: timedelta) -> None:
    """Sleep in ten steps, so that the loop handles other events in between.

    If the process gets no CPU time for a while, a single sleep would end before the loop has read the data that arrived in that time.
    """
    for _ in range(_STEPS):
        await asyncio.sleep(duration.total_seconds() / _STEPS)


async def wait_for_first(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Wait until one of the coroutines returns, and cancel the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
