"""grpc.health.v1: the readiness of the server (readiness.py), for load balancers and probes.

The servicer of grpcio-health-checking writes to watchers under a lock. A watcher that does not read would block all others.
"""

import asyncio
from typing import Any, TypeAlias

from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import pb
from service.errors import TooManyWatchers, UnknownService

_Status: TypeAlias = Any  # the stubs have a metaclass as the type of the enum
_Context = ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]

LIVENESS = "liveness"
"""Service name for liveness probes: SERVING while the process responds, because a restart would not fix PostgreSQL."""

_READINESS = ("", pb.BACKUP_SERVICE, pb.CLUSTER_SERVICE)
_MAX_WATCHERS = 1000


class Health(health_pb2_grpc.HealthServicer):
    """The status of all services, NOT_SERVING until it is set. `LIVENESS` is always SERVING."""

    def __init__(self) -> None:
        self._serving = False
        self._changed = asyncio.Event()
        self.watchers = 0
        """Number of calls of `Watch` that are open."""
        self._is_shutting_down = self._closed = False

    @property
    def serving(self) -> bool:
        return self._serving

    def set(self, *, serving: bool) -> None:
        """Change the status and wake the watchers, without waiting for them. Has no effect during shutdown."""
        if self._is_shutting_down or serving == self._serving:
            return
        self._serving = serving
        self._wake()

    def enter_graceful_shutdown(self) -> None:
        """Set NOT_SERVING permanently."""
        self.set(serving=False)
        self._is_shutting_down = True

    def close(self) -> None:
        """End the calls of all watchers after they have received NOT_SERVING."""
        self.enter_graceful_shutdown()
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        """Return the status of a service.

        Raises:
            UnknownService: no service has this name.
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
        """Send the status now and after each change. A slow reader misses statuses in between.

        Raises:
            TooManyWatchers: the limit is reached. Each watcher uses memory until it disconnects.
        """
        if self.watchers >= _MAX_WATCHERS:
            raise TooManyWatchers
        self.watchers += 1
        try:
            await self._send_changes(request.service, context)
        finally:
            self.watchers -= 1

    async def _send_changes(self, service: str, context: _Context) -> None:
        sent = None
        while True:
            changed, status = self._changed, self._status(service)
            if status != sent:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                sent = status
            if self._closed:
                return
            await changed.wait()

    def _status(self, service: str) -> _Status:
        if service == LIVENESS:
            return health_pb2.HealthCheckResponse.SERVING
        if service not in _READINESS:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return health_pb2.HealthCheckResponse.SERVING if self._serving else health_pb2.HealthCheckResponse.NOT_SERVING
