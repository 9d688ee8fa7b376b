"""A running server: start, serve, shutdown. `composition.build_server` builds it; nothing here reads settings."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, Self

from service import process
from service.address import Address
from service.api.admission import Admission
from service.api.health import Health
from service.api.readiness import Readiness
from service.api.transport.listener import Listener
from service.api.transport.rpc_task import create_task
from service.observability import logs
from service.observability.metrics import Metrics
from service.periodic import PeriodicTask, running_periodically
from service.waiting import wait_for_first

# gRPC returns CANCELLED, which clients do not retry, to calls that arrive while a listener stops. So no call may arrive for this long
# before it stops, unless calls still arrive after the timeout.
_IDLE_WINDOW = timedelta(milliseconds=100)
_IDLE_TIMEOUT = timedelta(seconds=2)

# Gives GOAWAY time to be sent before held calls are rejected and their clients call again.
_GOAWAY = timedelta(milliseconds=20)

_HEALTH_GRACE = timedelta(seconds=1)


class ShutdownTimes(NamedTuple):
    """Bounds of the steps of a graceful shutdown."""

    drain_delay: timedelta
    """Time in which the server still answers calls while it reports NOT_SERVING, for load balancers to react."""
    grace: timedelta
    """For calls in flight."""
    closing: timedelta
    """For closing the database and sending the last traces."""

    @property
    def longest(self) -> timedelta:
        """The bound of the whole shutdown, without pauses of a second at most. The grace counts twice: cancelled handlers get it again."""
        return self.drain_delay + _IDLE_TIMEOUT + 2 * self.grace + self.closing


@dataclass(kw_only=True)
class Server:
    """All parts of a server. The commands and the tests start it in the same way; with port 0, servers do not collide."""

    listener: Listener
    health_listener: Listener | None
    """Answers health checks only, in plaintext."""
    metrics: Metrics
    metrics_address: Address | None
    """None if metrics are off. After the start, port 0 is replaced by the port in use."""
    admission: Admission
    health: Health
    readiness: Readiness
    periodic_tasks: Sequence[PeriodicTask]
    shutdown_times: ShutdownTimes
    opened: contextlib.AsyncExitStack
    """Closes the parts that were opened, in reverse order."""
    _forced: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @property
    def address(self) -> Address:
        """Address of the API. After the start, port 0 is replaced by the port in use."""
        return self.listener.address

    @property
    def health_address(self) -> Address | None:
        """Address of the plaintext listener for health checks; None if there is none."""
        return self.health_listener.address if self.health_listener else None

    async def start(self) -> Self:
        """Listen and answer calls, even if PostgreSQL is unavailable. If the start fails, everything is closed again.

        Raises:
            PortTaken: an address cannot be listened on.
            InvalidSettings: gRPC cannot use the certificate or the key.
        """
        asyncio.get_running_loop().set_task_factory(create_task)
        async with self.opened as opened:
            if self.metrics_address is not None:
                self.metrics_address = opened.enter_context(self.metrics.served(self.metrics_address))
            await self._start_listeners(opened)
            await opened.enter_async_context(running_periodically(*self.periodic_tasks))
            self.opened = opened.pop_all()
        logs.event("listening", address=str(self.address))
        return self

    async def shutdown(self) -> None:
        """Stop gracefully. docs/decisions/0007-shutdown.md has the reasons for the order."""
        # Report NOT_SERVING, and keep serving while load balancers react.
        self.readiness.enter_graceful_shutdown()
        await self._unless_forced(asyncio.sleep(self.shutdown_times.drain_delay.total_seconds()))
        # Hold new calls until none arrives.
        self.admission.reject_new_calls()
        await self._unless_forced(self.admission.idle(_IDLE_WINDOW, timeout=_IDLE_TIMEOUT))
        self.health.close()
        # Close everything in reverse order of the start: periodic tasks, listeners (`_stop_listening`), metrics, database.
        await self.opened.aclose()
        logs.event("stopped")

    def force_shutdown(self) -> None:
        """Make `shutdown` stop waiting for calls."""
        self._forced.set()

    async def _start_listeners(self, opened: contextlib.AsyncExitStack) -> None:
        opened.push_async_callback(self.listener.interceptor.finished, self.shutdown_times.grace)
        await self.listener.start()
        opened.push_async_callback(self._stop_listening)
        if self.health_listener is not None:
            await self.health_listener.start()
            opened.push_async_callback(self.health_listener.stop, _HEALTH_GRACE)

    async def _stop_listening(self) -> None:
        """Send GOAWAY, reject the held calls, and let calls in flight finish within the grace period, unless shutdown is forced."""
        stopping = self.listener.stop(self.shutdown_times.grace)
        await asyncio.sleep(_GOAWAY.total_seconds())
        self.admission.release_held_calls()
        await self._unless_forced(asyncio.wait((stopping,)))  # does not cancel `stopping` if it is cancelled itself
        if not stopping.done():
            await self.listener.stop(timedelta(0))
        await stopping

    async def _unless_forced(self, waiting: Any) -> None:
        """Wait for a coroutine, or until a second signal forces shutdown."""
        await wait_for_first(waiting, self._forced.wait())


def serve(
    build: Callable[[], Awaitable[Server]],
    *,
    started: Callable[[Server], None] = lambda server: None,
    stop_signals: Sequence[signal.Signals] = process.STOP_SIGNALS,
) -> None:
    """Run a server until the process receives a stop signal. A second one forces shutdown.

    Args:
        build: builds the server; called in the event loop.
        started: called once the server listens.
        stop_signals: signals that stop the server.

    Raises:
        CommandError: the server cannot be built or started.
    """
    process.run(_serve(build, started, stop_signals), stop_signals=stop_signals)


async def _serve(build: Callable[[], Awaitable[Server]], started: Callable[[Server], None], stop_signals: Sequence[signal.Signals]) -> None:
    server = await build()
    signalled = process.handle_signals(stop_signals, repeated=server.force_shutdown)
    await server.start()
    gc.freeze()  # a full collection over everything that start-up has created would stop the loop for tens of milliseconds
    try:
        started(server)
        await signalled.wait()
    finally:
        process.start_watchdog(server.shutdown_times.longest)
        await server.shutdown()
