"""grpc.health.v1: whether the server should be sent calls.

A servicer of our own: the one of grpcio-health-checking writes to watchers under a lock, so that one that does not read freezes what
all others are told.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import pb
from service.errors import TooManyWatchers, UnknownService
from service.observability import logs

_Status: TypeAlias = Any  # an enum whose types are a metaclass
_Context = ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]

LIVENESS = "liveness"
"""The name to ask by whether the process itself answers: SERVING, whatever PostgreSQL does. To start it again would mend nothing there."""

_READINESS = ("", pb.BACKUP_SERVICE, pb.CLUSTER_SERVICE)
_MAX_WATCHERS = 1000
_STEPS = 10


class Health(health_pb2_grpc.HealthServicer):
    """One state, not serving until it is set, for all services but LIVENESS."""

    def __init__(self) -> None:
        self._serving = False
        self._changed = asyncio.Event()
        self._watchers = 0
        self._left = self._closed = False

    @property
    def serving(self) -> bool:
        return self._serving

    def set(self, *, serving: bool) -> None:
        """Changes the state at once, and wakes the watchers; never waits for one. Has no effect once left."""
        if self._left or serving == self._serving:
            return
        logs.event("serving" if serving else "not serving")
        self._serving = serving
        self._wake()

    def leave(self) -> None:
        """Not serving for good; watchers are told."""
        self.set(serving=False)
        self._left = True

    def close(self) -> None:
        """Not serving for good; watchers are told, and end."""
        self.leave()
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        """
        Raises:
            UnknownService: there is none of this name.
        """
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise UnknownService(request.service)
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, context: Any) -> Any:
        """Return the status of every service that `Check` knows."""
        statuses = {name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in (*_READINESS, LIVENESS)}
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]  # the stubs are older than the method

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        """Tells the state now and whenever it changes; a slow reader misses what was between.

        Raises:
            TooManyWatchers: each holds memory for as long as it likes.
        """
        if self._watchers >= _MAX_WATCHERS:
            raise TooManyWatchers
        self._watchers += 1
        try:
            told = None
            while True:
                changed, status = self._changed, self._status(request.service)
                if status != told:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                    told = status
                if self._closed:
                    return
                await changed.wait()
        finally:
            self._watchers -= 1

    def _status(self, service: str) -> _Status:
        if service == LIVENESS:
            return health_pb2.HealthCheckResponse.SERVING
        if service not in _READINESS:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return health_pb2.HealthCheckResponse.SERVING if self._serving else health_pb2.HealthCheckResponse.NOT_SERVING


async def keep_ready(health: Health, why_not: Callable[[], Awaitable[str | None]], *, period: timedelta, within: timedelta) -> None:
    """Asks again and again why the server is not ready, if it is not, for as long as it runs. No answer within the period is one.

    Args:
        why_not: gives the reason, or raises it; None where the server is ready.
        within: how long an answer may take all the same, such as a connection to the second of two hosts.
    """
    told: object = None
    while True:
        asking = asyncio.ensure_future(why_not())
        try:
            if not await _is_over(asking, period):
                health.set(serving=False)
            async with asyncio.timeout(within.total_seconds()):
                reason: object = await asking
            if reason and reason != told:
                logs.event("not ready", level="warning", reason=reason)
        except Exception as exc:  # whatever it is, it may have been mended by the next look
            reason = type(exc)
            if reason != told:
                logs.event("not ready", level="warning", error=logs.describe(exc))
        finally:
            asking.cancel()
        told = reason
        health.set(serving=reason is None)
        await asyncio.sleep(period.total_seconds())


async def _is_over(task: "asyncio.Future[Any]", within: timedelta) -> bool:
    """Waits in many small steps: to a process that got no CPU, time has passed, but an answer that came meanwhile is not known yet."""
    for _ in range(_STEPS):
        await asyncio.wait((task,), timeout=within.total_seconds() / _STEPS)
        if task.done():
            return True
    return False
