"""The only module of the server that reads settings: it builds every part and connects them."""

import contextlib
import platform
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service import VERSION, pb
from service.api.admission import MAX_INCOMPLETE_REQUESTS, Admission, IncompleteRequests
from service.api.api_endpoint_service import ApiEndpointService
from service.api.auth.authentication import Anonymous, Authenticator, JwtAuthenticator, TokenRules
from service.api.auth.client_names import ClientNames
from service.api.auth.jwks_source import jwks_source
from service.api.auth.signing_keys import SigningKeys
from service.api.backup_service import BackupService
from service.api.client_address import ClientAddresses
from service.api.cluster_service import ClusterService
from service.api.health import Health
from service.api.interceptor import Interceptor
from service.api.readiness import NotReady, Readiness
from service.api.transport.certificate import ReloadedCertificate, TlsFiles
from service.api.transport.listener import Listener
from service.catalog_metrics import CatalogMetrics
from service.errors import InvalidSettings, TracingUnavailable
from service.observability import logs
from service.observability.metrics import Metrics
from service.page_token import PageTokens
from service.periodic import PeriodicTask
from service.postgres.catalog import Catalog
from service.postgres.database import Database, Limits, open_database
from service.postgres.schema import REQUIRED_REVISION
from service.server import Server, ShutdownTimes
from service.settings import Settings

if TYPE_CHECKING:  # imported only if traces are configured
    from service.observability.tracing import Tracing

_JWKS_RETRY = timedelta(seconds=10)

# `Settings` requires all of them when it is read. A copy of settings is not checked again.
_INCOMPLETE_AUTHENTICATION = "BACKUPS_AUTH=jwt needs BACKUPS_JWKS, BACKUPS_JWT_ISSUER and BACKUPS_JWT_AUDIENCE"
_READINESS_PERIOD = timedelta(seconds=1)


class _Parts(NamedTuple):
    """Parts that several other parts need."""

    settings: Settings
    tracing: "Tracing | None"
    database: Database
    catalog: Catalog
    keys: SigningKeys | None
    admission: Admission
    incomplete: IncompleteRequests
    health: Health
    readiness: Readiness
    metrics: Metrics


async def build_server(settings: Settings) -> Server:
    """Build a server with all its parts. Nothing listens, connects or reads signing keys before `Server.start`.

    Raises:
        InvalidSettings: settings are missing or unsafe, or the certificate cannot be used.
    """
    settings.require_safe_addresses()
    async with contextlib.AsyncExitStack() as opened:
        parts = await _parts(settings, opened)
        listener = _listener(parts)
        _add_services(parts, listener.server)
        _add_gauges(parts)
        return Server(
            listener=listener,
            health_listener=_health_listener(parts),
            metrics=parts.metrics,
            metrics_address=settings.metrics_listen,
            admission=parts.admission,
            health=parts.health,
            readiness=parts.readiness,
            periodic_tasks=_periodic_tasks(parts),
            shutdown_times=shutdown_times(settings, parts.tracing),
            opened=opened.pop_all(),
        )


def log_warnings(settings: Settings) -> None:
    """Log unknown variables, and settings that work but are not safe."""
    for problem in settings.warnings:
        logs.event("questionable setting", level="warning", problem=problem)


def database(settings: Settings, tracing: "Tracing | None" = None) -> contextlib.AbstractAsyncContextManager[Database]:
    """Return a context manager that opens the catalog's database for reading. The database may be unavailable.

    Raises:
        InvalidSettings: there is no URL.
    """
    limits = Limits(
        pool_size=settings.pool_size,
        connect=settings.connect_timeout,
        acquire=settings.acquire_timeout,
        statement=settings.request_timeout,
    )
    return open_database(
        settings.require_database_url(),
        limits,
        pooled=settings.pooler == "transaction",
        max_replication_lag=settings.max_replication_lag,
        tracing=tracing,
    )


def shutdown_times(settings: Settings, tracing: "Tracing | None" = None) -> ShutdownTimes:
    """Return the bounds of a shutdown. Closing the database takes at most the timeout of acquiring a connection."""
    flush = tracing.flush_within if tracing else timedelta(0)
    return ShutdownTimes(settings.drain_delay, settings.shutdown_grace, closing=settings.acquire_timeout + flush)


def _tracing(settings: Settings, opened: contextlib.AsyncExitStack) -> "Tracing | None":
    """Return None if tracing is off or unavailable; the server starts either way."""
    if not settings.exports_traces:
        return None
    try:
        from service.observability.tracing import Tracing

        tracing = Tracing(trusts_callers=settings.auth == "jwt" or settings.tls_client_ca is not None)
    except ImportError:
        problem = (
            "variables OTEL_... are set, but OpenTelemetry is not installed: see requirements/production.txt, or set OTEL_SDK_DISABLED=true"
        )
    except TracingUnavailable as exc:
        problem = str(exc)
    except Exception as exc:  # OpenTelemetry rejects the value of one of its variables
        problem = f"OpenTelemetry cannot use a variable OTEL_... ({type(exc).__name__})"
    else:
        opened.push_async_callback(tracing.close)
        return tracing
    logs.event("no traces", level="warning", problem=problem)
    return None


def _signing_keys(settings: Settings) -> SigningKeys | None:
    """Return the keys that verify tokens, not read yet; None if calls need no token."""
    if settings.auth == "none":
        return None
    if settings.jwks is None:
        raise InvalidSettings(_INCOMPLETE_AUTHENTICATION)
    return SigningKeys(jwks_source(settings.jwks), refresh=settings.jwks_refresh, max_age=settings.jwks_max_age, retry=_JWKS_RETRY)


def _authenticator(settings: Settings, keys: SigningKeys | None) -> Authenticator:
    """Return an authenticator that verifies tokens with these keys, or accepts every call if BACKUPS_AUTH is `none`."""
    if settings.auth == "none":
        return Anonymous()
    if keys is None or settings.jwt_issuer is None or settings.jwt_audience is None:
        raise InvalidSettings(_INCOMPLETE_AUTHENTICATION)
    rules = TokenRules(issuer=settings.jwt_issuer, audience=settings.jwt_audience, max_lifetime=settings.jwt_max_lifetime)
    return JwtAuthenticator(keys, rules)


async def _parts(settings: Settings, opened: contextlib.AsyncExitStack) -> _Parts:
    tracing = _tracing(settings, opened)
    catalog_database = await opened.enter_async_context(database(settings, tracing))
    keys = _signing_keys(settings)
    health, catalog = Health(), Catalog(catalog_database)
    readiness = Readiness(
        health,
        catalog_database,
        catalog,
        max_replication_lag=settings.max_replication_lag,
        period=_READINESS_PERIOD,
        timeout=settings.acquire_timeout,
        keys_problem=lambda: keys.problem if keys else None,
    )
    return _Parts(
        settings=settings,
        tracing=tracing,
        database=catalog_database,
        catalog=catalog,
        keys=keys,
        admission=Admission(settings.admission_limit),
        incomplete=IncompleteRequests(MAX_INCOMPLETE_REQUESTS),
        health=health,
        readiness=readiness,
        metrics=Metrics(),
    )


def _periodic_tasks(parts: _Parts) -> list[PeriodicTask]:
    settings, keys = parts.settings, parts.keys
    tasks = [
        PeriodicTask("check readiness", parts.readiness.check, _READINESS_PERIOD),
        PeriodicTask("renew connections", parts.database.reconnect, settings.pool_max_age),
    ]
    if keys is not None:
        tasks.append(PeriodicTask("refresh signing keys", keys.refresh, keys.retry))
    if settings.catalog_metrics:
        catalog_metrics = CatalogMetrics(parts.database, limit=settings.catalog_metrics_limit)
        parts.metrics.collect(catalog_metrics)
        tasks.append(PeriodicTask("refresh catalog metrics", catalog_metrics.refresh, settings.catalog_metrics_refresh))
    return tasks


def _listener(parts: _Parts) -> Listener:
    settings = parts.settings
    return Listener(
        settings.listen,
        _interceptor(parts),
        setting="BACKUPS_LISTEN",
        options=_connection_age(settings),
        credentials=_credentials(settings, parts.metrics),
        accepts_concurrently=settings.concurrent_accept,
    )


def _health_listener(parts: _Parts) -> Listener | None:
    address = parts.settings.health_listen
    if address is None:
        return None
    listener = Listener(address, _interceptor(parts), setting="BACKUPS_HEALTH_LISTEN", accepts_concurrently=False)
    health_pb2_grpc.add_HealthServicer_to_server(parts.health, listener.server)
    return listener


def _interceptor(parts: _Parts) -> Interceptor:
    """Return an interceptor for one listener. All listeners share the limits."""
    settings = parts.settings
    return Interceptor(
        admission=parts.admission,
        incomplete=parts.incomplete,
        clients=ClientAddresses(settings.trusted_proxies),
        authenticator=_authenticator(settings, parts.keys),
        metrics=parts.metrics,
        request_timeout=settings.request_timeout,
        client_names=ClientNames(settings.tls_client_names),
        tracing=parts.tracing,
    )


def _connection_age(settings: Settings) -> list[tuple[str, Any]]:
    """Return the options that close connections after some time, so that load balancers distribute them again."""
    age, millisecond = settings.connection_max_age, timedelta(milliseconds=1)
    if age is None:
        return []
    return [
        ("grpc.max_connection_age_ms", age // millisecond),
        ("grpc.max_connection_age_grace_ms", settings.shutdown_grace // millisecond),
    ]


def _credentials(settings: Settings, metrics: Metrics) -> grpc.ServerCredentials | None:
    """Return the credentials of the API's listener, or None for plaintext. With TLS, add the gauge of the certificate's expiry."""
    if settings.tls_cert is None and settings.tls_key is None and settings.tls_client_ca is None:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise InvalidSettings("BACKUPS_TLS_CERT and BACKUPS_TLS_KEY are needed together, BACKUPS_TLS_CLIENT_CA only with them")
    certificate = ReloadedCertificate(TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca))
    help_text = "When the first certificate of the chain in use expires, in seconds since 1970."
    metrics.gauge("backups_tls_certificate_expiry_timestamp_seconds", help_text, lambda: certificate.expires_at)
    return certificate.credentials()


def _add_services(parts: _Parts, server: grpc.aio.Server) -> None:
    settings = parts.settings
    page_tokens = PageTokens(
        settings.page_token_key.get_secret_value(),
        accepted=[key.get_secret_value() for key in settings.page_token_keys_accepted],
    )
    pb.add_BackupServiceServicer_to_server(BackupService(catalog=parts.catalog, page_tokens=page_tokens), server)
    pb.add_ClusterServiceServicer_to_server(ClusterService(catalog=parts.catalog, page_tokens=page_tokens), server)
    health_pb2_grpc.add_HealthServicer_to_server(parts.health, server)
    names = [pb.BACKUP_SERVICE, pb.CLUSTER_SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
    if settings.public_address:
        pb.add_ApiEndpointServiceServicer_to_server(ApiEndpointService(str(settings.public_address)), server)
        names.append(pb.API_ENDPOINT_SERVICE)
    if settings.reflection:
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)


def _add_gauges(parts: _Parts) -> None:
    metrics, admission, readiness, pool = parts.metrics, parts.admission, parts.readiness, parts.database
    metrics.build(version=VERSION, python=platform.python_version(), grpcio=grpc.__version__, schema_required=str(REQUIRED_REVISION))
    metrics.gauge("backups_ready", "1 if the replica is ready, else 0.", lambda: readiness.reason is None)
    metrics.state("backups_not_ready", "1 for the reason why the replica is not ready.", "reason", NotReady, lambda: readiness.reason)
    metrics.gauge("backups_admission_in_flight", "Cost of the calls in flight.", lambda: admission.in_flight)
    metrics.gauge("backups_admission_limit", "Maximum cost of the calls in flight.", lambda: admission.limit)
    metrics.gauge("backups_incomplete_requests", "Calls whose request has not arrived in full.", lambda: len(parts.incomplete))
    help_text = "Seconds since a check last reached the database and found a recent schema."
    metrics.gauge("backups_database_last_check_age_seconds", help_text, lambda: readiness.last_success_age)
    metrics.counter("backups_log_lines_dropped", "Lines of the log that could not be written.", logs.dropped)
    metrics.gauge("backups_pool_connections", "Connections to PostgreSQL.", lambda: pool.connections)
    metrics.gauge("backups_pool_idle_connections", "Idle connections to PostgreSQL.", lambda: pool.idle_connections)
    metrics.gauge("backups_pool_size", "Maximum number of connections to PostgreSQL for calls.", lambda: parts.settings.pool_size)
    if keys := parts.keys:
        metrics.gauge("backups_jwks_age_seconds", "Seconds since the signing keys were last read.", lambda: keys.age)
        max_age = parts.settings.jwks_max_age.total_seconds
        metrics.gauge("backups_jwks_max_age_seconds", "Maximum age of the signing keys, in seconds.", max_age)
