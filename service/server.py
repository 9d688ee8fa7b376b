"""
The composition root, and a life in order: build, start, ready, drain, stop.

The only place, beside the commands, that has read the settings: everything else is given values.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Self

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service import pb, telemetry
from service.api.backup_service import BackupService
from service.api.health import Health, keep_ready
from service.api.interceptor import Interceptor
from service.errors import PortTaken
from service.page_token import PageTokens
from service.postgres.catalog import Catalog
from service.postgres.database import Database, Limits, open_database
from service.postgres.schema import REQUIRED_REVISION, present_revision
from service.settings import Address, Settings

_READY_PERIOD = timedelta(seconds=1)

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # with it, a second server would take half of the first one's calls
    ("grpc.max_concurrent_streams", 1000),  # for each connection
    # gRPC's own queues, when they are full, answer CANCELLED, which clients never retry.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # Equal: between two different limits, metadata is refused at random.
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
)


class Server:
    """The running service. `main` and the tests start it in the same way; port 0 makes that safe in parallel."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened = contextlib.AsyncExitStack()  # closes in reverse order
        self.health = Health()
        self._interceptor = Interceptor(request_timeout=settings.request_timeout)
        self._grpc = grpc.aio.server(interceptors=[self._interceptor], options=_OPTIONS)
        self.address = settings.listen
        """Where it listens, once started: port 0 has become a real one."""

    async def start(self) -> Self:
        """
        Listens and answers, whether PostgreSQL is there or not.

        Raises:
            PortTaken: something else listens there.

        """
        async with contextlib.AsyncExitStack() as opened:
            database = await opened.enter_async_context(_database(self._settings))
            self._register(database)
            self.address = self._listen(self._settings.listen)
            await self._grpc.start()
            opened.push_async_callback(self._interceptor.finished, self._settings.shutdown_grace)
            opened.push_async_callback(self._grpc.stop, self._settings.shutdown_grace.total_seconds())
            self._keep_ready(database, opened)
            self._opened = opened.pop_all()  # what fails to start has closed by now what it had opened
        telemetry.event("listening", address=str(self.address))
        return self

    async def stop(self) -> None:
        """Lets calls in flight finish, within the grace period, then closes what was opened."""
        self.health.close()
        await self._opened.aclose()
        telemetry.event("stopped")

    def _register(self, database: Database) -> None:
        settings = self._settings
        page_tokens = PageTokens(
            settings.page_token_key.get_secret_value(),
            accepted=[key.get_secret_value() for key in settings.page_token_keys_accepted],
        )
        pb.add_BackupServiceServicer_to_server(BackupService(catalog=Catalog(database), page_tokens=page_tokens), self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._grpc)
        if settings.reflection:
            names = (pb.BACKUP_SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)

    def _listen(self, address: Address) -> Address:
        try:
            return address._replace(port=self._grpc.add_insecure_port(str(address)))
        except RuntimeError as exc:
            raise PortTaken(
                f"{address} cannot be listened on: is it in use? BACKUPS_LISTEN names another, such as 127.0.0.1:50052"
            ) from exc

    def _keep_ready(self, database: Database, opened: contextlib.AsyncExitStack) -> None:
        async def is_ready() -> bool:
            return await present_revision(database) >= REQUIRED_REVISION

        task = asyncio.create_task(keep_ready(self.health, is_ready, period=_READY_PERIOD))
        opened.callback(task.cancel)


def _database(settings: Settings) -> contextlib.AbstractAsyncContextManager[Database]:
    limits = Limits(
        pool_size=settings.pool_size,
        connect=settings.connect_timeout,
        acquire=settings.acquire_timeout,
        statement=settings.request_timeout,
    )
    return open_database(settings.require_database_url(), limits)


async def _serve(settings: Settings, started: Callable[[Server], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await Server(settings).start()
    try:
        started(server)
        await stop.wait()
    finally:
        await server.stop()


def serve(settings: Settings, *, started: Callable[[Server], None] = lambda server: None) -> None:
    """
    Runs the server until SIGINT or SIGTERM.

    Raises:
        PortTaken, InvalidSettings: it cannot start.

    """
    uvloop.run(_serve(settings, started))
