"""The process of a server: signals, file descriptors, event loop, and the watchdog of the shutdown."""

import asyncio
import faulthandler
import resource
import signal
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any

import uvloop

from service.api.transport.listener import MAX_CONNECTIONS
from service.observability import logs

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
_IGNORED_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # by default, each would kill the process

WATCHDOG_MARGIN = timedelta(seconds=10)
"""Time between the bound of the shutdown and the exit by the watchdog."""

_DESCRIPTORS = 2 * MAX_CONNECTIONS + 1000  # connections of both listeners, and those to PostgreSQL, files and metrics


def run(main: Coroutine[Any, Any, None], *, stop_signals: Sequence[signal.Signals]) -> None:
    """Run the coroutine of a server in a new event loop.

    Args:
        main: calls `handle_signals` before it listens.
        stop_signals: signals that `main` handles. Other signals that users can send are ignored.
    """
    for number in _IGNORED_SIGNALS:
        if number not in stop_signals:
            signal.signal(number, signal.SIG_IGN)
    _raise_descriptor_limit()
    with logs.writing_in_background():
        uvloop.run(_logging_unexpected(main))
    faulthandler.cancel_dump_traceback_later()


def handle_signals(stop_signals: Sequence[signal.Signals], *, repeated: Callable[[], None]) -> asyncio.Event:
    """Return an event that is set by the first of the signals. Each further one calls `repeated`."""
    signalled = asyncio.Event()

    def on_signal() -> None:
        if signalled.is_set():
            repeated()
        signalled.set()

    for number in stop_signals:
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return signalled


def start_watchdog(longest: timedelta) -> None:
    """Dump the stacks of all threads and exit with 1 if the process still runs `WATCHDOG_MARGIN` after the longest shutdown."""
    faulthandler.dump_traceback_later((longest + WATCHDOG_MARGIN).total_seconds(), exit=True)


async def _logging_unexpected(main: Coroutine[Any, Any, None]) -> None:
    asyncio.get_running_loop().set_exception_handler(_log_unexpected)
    await main


def _log_unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log exceptions of tasks that are never awaited, without their text, which asyncio would log."""
    error = context.get("exception")
    logs.event("unexpected error", level="error", error=logs.describe(error) if error else None)


def _raise_descriptor_limit() -> None:
    """Allow the descriptors that the listeners may need, as far as the hard limit permits. The default of many systems is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
