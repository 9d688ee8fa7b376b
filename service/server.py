"""A server's life in order: build, start, ready, drain, stop.

Beside the commands, it and `composition` alone have read the settings: everything else is given values.
"""

import asyncio
import contextlib
import faulthandler
import gc
import math
import platform
import signal
import time
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Self

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service import VERSION, composition, pb
from service.api.admission import MAX_INCOMPLETE_REQUESTS, Admission, IncompleteRequests
from service.api.api_endpoint_service import ApiEndpointService
from service.api.backup_service import BackupService
from service.api.certificate import FollowedCertificate, TlsFiles
from service.api.client_address import ClientAddresses
from service.api.client_names import ClientNames
from service.api.cluster_service import ClusterService
from service.api.health import Health, keep_ready
from service.api.interceptor import Interceptor
from service.api.rpc_task import create_task
from service.catalog_metrics import CatalogMetrics
from service.errors import PortTaken
from service.observability import logs
from service.observability.metrics import Metrics
from service.page_token import PageTokens
from service.postgres.catalog import Catalog
from service.postgres.database import Database
from service.postgres.replication import replication_lag
from service.postgres.schema import REQUIRED_REVISION, present_revision
from service.settings import Address, Settings

_READY_PERIOD = timedelta(seconds=1)

# Between the last call and the end of the listener: gRPC answers CANCELLED, which nobody retries, to calls that arrive while it stops.
_QUIET_WINDOW = timedelta(milliseconds=100)
_QUIET_WITHIN = timedelta(seconds=2)

# For the notice that a connection ends to be on its way before the answers that make clients call again.
_NOTICE = timedelta(milliseconds=20)

# What the steps of an end may take beyond their own bounds, before the process is ended.
_WATCHDOG_MARGIN = timedelta(seconds=10)


class Server:
    """The running service. `main` and the tests start it in the same way; port 0 makes that safe in parallel."""

    required_revision = REQUIRED_REVISION

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened = contextlib.AsyncExitStack()  # closes in reverse order
        self._hurried = asyncio.Event()
        self.health = Health()
        self.admission = Admission(settings.admission_limit)
        self._incomplete = IncompleteRequests(MAX_INCOMPLETE_REQUESTS)
        self._clients = ClientAddresses(settings.trusted_proxies)
        self._keys = composition.signing_keys(settings)
        self._metrics = Metrics()
        self._database_seen_at = self._up_to_date_at = -math.inf
        self._tracing = composition.tracing(settings)
        self._authenticator = composition.authenticator(settings, self._keys)
        self._interceptor = self._new_interceptor()
        self._grpc = grpc.aio.server(interceptors=[self._interceptor], options=composition.listener_options(settings))
        self.address = settings.listen
        """Where it listens, once started: port 0 has become a real one."""
        self.health_address = settings.health_listen
        """Where it listens for health checks in plaintext, if it does."""
        self.metrics_address = settings.metrics_listen
        """Where it answers scrapes, if it does."""

    def _new_interceptor(self) -> Interceptor:
        """One for each listener: it remembers the methods that its listener has."""
        return Interceptor(
            admission=self.admission,
            incomplete=self._incomplete,
            clients=self._clients,
            authenticator=self._authenticator,
            metrics=self._metrics,
            request_timeout=self._settings.request_timeout,
            client_names=ClientNames(self._settings.tls_client_names),
            tracing=self._tracing,
        )

    async def start(self) -> Self:
        """Listens and answers, whether PostgreSQL is there or not.

        Raises:
            PortTaken: something else listens there.
            InvalidSettings: it must not listen there, or the certificate cannot be used.
        """
        settings = self._settings
        settings.require_safe_addresses()
        asyncio.get_running_loop().set_task_factory(create_task)
        async with contextlib.AsyncExitStack() as opened:
            if self._tracing:
                opened.push_async_callback(self._tracing.close)
            database = await opened.enter_async_context(composition.database(settings, self._tracing))
            self._register(database)
            self._measure(database, opened)
            self.address = self._listen(settings.listen)
            opened.push_async_callback(self._interceptor.finished, settings.shutdown_grace)
            await self._grpc.start()
            opened.push_async_callback(self._stop_listening)
            if settings.health_listen:
                self.health_address = await self._start_health(settings.health_listen, opened)
            self._start_background(database, opened)
            self._opened = opened.pop_all()  # what fails to start has closed by now what it had opened
        logs.event("listening", address=str(self.address))
        return self

    async def stop(self) -> None:
        """Not serving, still answering while balancers notice, refusing, then waiting for what is in flight; each step bounded."""
        self.health.leave()
        await self._unless_hurried(asyncio.sleep(self._settings.drain_delay.total_seconds()))
        self.admission.close()
        await self._unless_hurried(self.admission.quiet(_QUIET_WINDOW, within=_QUIET_WITHIN))
        self.health.close()
        await self._opened.aclose()
        logs.event("stopped")

    def hurry(self) -> None:
        """Makes `stop` wait for no call."""
        self._hurried.set()

    @property
    def longest_end(self) -> timedelta:
        """What `stop` may take, with each of its steps at its bound."""
        settings = self._settings
        traces = self._tracing.flush_within if self._tracing else timedelta(0)
        return settings.drain_delay + _QUIET_WITHIN + 2 * settings.shutdown_grace + settings.acquire_timeout + traces

    async def _unless_hurried(self, waiting: Coroutine[Any, Any, object]) -> None:
        """Until that is over, or somebody is in a hurry."""
        tasks = asyncio.ensure_future(waiting), asyncio.ensure_future(self._hurried.wait())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def _stop_listening(self) -> None:
        """Calls in flight may finish within the grace period, unless somebody is in a hurry."""
        stopping = asyncio.ensure_future(self._grpc.stop(self._settings.shutdown_grace.total_seconds()))
        await asyncio.sleep(_NOTICE.total_seconds())
        self.admission.dismiss()
        await self._unless_hurried(asyncio.wait((stopping,)))  # which is not cancelled with the wait for it
        if not stopping.done():
            await self._grpc.stop(0)
        await stopping

    def _register(self, database: Database) -> None:
        settings = self._settings
        page_tokens = PageTokens(
            settings.page_token_key.get_secret_value(),
            accepted=[key.get_secret_value() for key in settings.page_token_keys_accepted],
        )
        catalog = Catalog(database)
        pb.add_BackupServiceServicer_to_server(BackupService(catalog=catalog, page_tokens=page_tokens), self._grpc)
        pb.add_ClusterServiceServicer_to_server(ClusterService(catalog=catalog, page_tokens=page_tokens), self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._grpc)
        if settings.public_address:
            pb.add_ApiEndpointServiceServicer_to_server(ApiEndpointService(str(settings.public_address)), self._grpc)
        if settings.reflection:
            discovery = (pb.API_ENDPOINT_SERVICE,) if settings.public_address else ()
            health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
            names = (pb.BACKUP_SERVICE, pb.CLUSTER_SERVICE, *discovery, health, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)

    def _listen(self, address: Address) -> Address:
        settings = self._settings
        if settings.tls_cert is None or settings.tls_key is None:
            return _bound(address, self._grpc.add_insecure_port, "LISTEN")
        certificate = FollowedCertificate(TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca))
        help_text = "When the first certificate of the chain in use expires, in seconds since 1970."
        self._metrics.gauge("backups_tls_certificate_expiry_timestamp_seconds", help_text, lambda: certificate.expires_at)
        credentials = certificate.credentials()
        return _bound(address, lambda text: self._grpc.add_secure_port(text, credentials), "LISTEN")

    def _measure(self, database: Database, opened: contextlib.AsyncExitStack) -> None:
        metrics, admission = self._metrics, self.admission
        metrics.build(version=VERSION, python=platform.python_version(), grpcio=grpc.__version__, schema_required=str(REQUIRED_REVISION))
        metrics.gauge("backups_ready", "1 where the server says that it should be sent calls.", lambda: self.health.serving)
        metrics.gauge("backups_admission_in_flight", "Cost of the calls that are being answered.", lambda: admission.in_flight)
        metrics.gauge("backups_admission_limit", "Cost that is admitted at once.", lambda: admission.limit)
        metrics.gauge("backups_incomplete_requests", "Calls whose request has not arrived in full.", lambda: len(self._incomplete))
        metrics.gauge("backups_database_unseen_seconds", "Since PostgreSQL, migrated, last answered the readiness check.", self._unseen)
        metrics.gauge("backups_pool_connections", "Connections to PostgreSQL.", lambda: database.connections)
        metrics.gauge("backups_pool_idle_connections", "Connections to PostgreSQL that are not in use.", lambda: database.idle_connections)
        metrics.gauge("backups_pool_size", "The most connections to PostgreSQL.", lambda: self._settings.pool_size)
        if keys := self._keys:
            metrics.gauge("backups_jwks_age_seconds", "Since the keys that sign tokens were last read.", lambda: keys.age)
            max_age = self._settings.jwks_max_age.total_seconds()
            metrics.gauge("backups_jwks_max_age_seconds", "How old these keys may become.", lambda: max_age)
        if address := self._settings.metrics_listen:
            try:
                port = opened.enter_context(metrics.served(address.host, address.port))
            except OSError as exc:
                raise _port_taken(address, "METRICS_LISTEN") from exc
            self.metrics_address = address._replace(port=port)

    def _unseen(self) -> float:
        return time.monotonic() - self._database_seen_at

    async def _start_health(self, address: Address, opened: contextlib.AsyncExitStack) -> Address:
        """A listener for health checks alone, in plaintext."""
        server = grpc.aio.server(interceptors=[self._new_interceptor()], options=composition.LISTENER_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        bound = _bound(address, server.add_insecure_port, "HEALTH_LISTEN")
        await server.start()
        opened.push_async_callback(server.stop, 1)
        return bound

    def _start_background(self, database: Database, opened: contextlib.AsyncExitStack) -> None:
        async def why_not_ready() -> str | None:
            now, max_lag = time.monotonic(), self._settings.max_replication_lag
            if await replication_lag(database) <= max_lag:
                self._up_to_date_at = now
            is_behind = now - self._up_to_date_at > max_lag.total_seconds()  # not while it replays what comes after a quiet time
            if is_behind:
                await database.reconnect()  # another host may do better
            await Catalog(database).probe()
            is_migrated = await present_revision(database) >= self.required_revision
            if is_migrated:
                self._database_seen_at = time.monotonic()
            if is_behind:
                return "the standby is too far behind"
            if not is_migrated:
                return "the schema is older than this release needs"
            return self._keys.problem if self._keys else None

        tasks = [
            asyncio.create_task(keep_ready(self.health, why_not_ready, period=_READY_PERIOD, within=self._settings.acquire_timeout)),
            asyncio.create_task(database.renew()),
        ]
        if self._keys:
            tasks.append(asyncio.create_task(self._keys.keep_fresh()))
        if self._settings.catalog_metrics:
            catalog = CatalogMetrics(database, limit=self._settings.catalog_metrics_limit)
            self._metrics.collect(catalog)
            tasks.append(asyncio.create_task(catalog.keep_fresh(self._settings.catalog_metrics_refresh)))
        for task in tasks:
            opened.callback(task.cancel)


def _bound(address: Address, add_port: Callable[[str], int], setting: str) -> Address:
    try:
        return address._replace(port=add_port(str(address)))
    except RuntimeError as exc:
        raise _port_taken(address, setting) from exc


def _port_taken(address: Address, setting: str) -> PortTaken:
    example = address._replace(port=address.port + 1 if 0 < address.port < 2**16 - 1 else 50052)
    return PortTaken(f"{address} cannot be listened on: is it in use? BACKUPS_{setting} names another, such as {example}")


def _log_unforeseen(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody awaits: asyncio's own line would have the error's text."""
    error = context.get("exception")
    logs.event("unforeseen", level="error", error=logs.describe(error) if error else None)


async def _serve(settings: Settings, started: Callable[[Server], None]) -> None:
    signalled = asyncio.Event()
    server = Server(settings)

    def on_signal() -> None:
        if signalled.is_set():
            server.hurry()  # the second one
        signalled.set()

    asyncio.get_running_loop().set_exception_handler(_log_unforeseen)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await server.start()
    gc.freeze()  # what is there by now stays: looking through it again and again would hold the loop for tens of milliseconds
    try:
        started(server)
        await signalled.wait()
    finally:
        # A hang beyond all bounds ends with a trace of every thread, and exit status 1.
        faulthandler.dump_traceback_later((server.longest_end + _WATCHDOG_MARGIN).total_seconds(), exit=True)
        await server.stop()


def serve(settings: Settings, *, started: Callable[[Server], None] = lambda server: None) -> None:
    """Runs the server until SIGINT or SIGTERM; a second one hurries.

    Raises:
        PortTaken, InvalidSettings: it cannot start.
    """
    uvloop.run(_serve(settings, started))
    faulthandler.cancel_dump_traceback_later()
