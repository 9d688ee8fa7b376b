"""What a server is made of, built as its settings say."""

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from service.api.authentication import Anonymous, Authenticator, JwtAuthenticator, TokenRules
from service.api.jwks_source import jwks_source
from service.api.signing_keys import SigningKeys
from service.errors import TracingUnavailable
from service.observability import logs
from service.postgres.database import Database, Limits, open_database
from service.settings import Settings

if TYPE_CHECKING:
    from service.observability.tracing import Tracing

_JWKS_RETRY = timedelta(seconds=10)

MAX_REQUEST_SIZE = 16 * 1024
"""Bytes of a request message, before and after decompression."""

# Of every listener.
LISTENER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # with it, a second server would take half of the first one's calls
    # Per connection. Twice what Envoy's cluster uses: gRPC core also counts closed streams that it has not cleaned up, and rejects.
    ("grpc.max_concurrent_streams", 2000),
    # gRPC's own queues, when they are full, answer CANCELLED, which clients never retry.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # A valid request has less than 1 KiB. gRPC core rejects a larger message as soon as it has read the length, before authentication.
    ("grpc.max_receive_message_length", MAX_REQUEST_SIZE),
    # Envoy's limit of 16 KiB, and 4 KiB for the headers that Envoy adds. Equal: between two different limits, gRPC core rejects at random.
    ("grpc.max_metadata_size", 20 * 1024),
    ("grpc.absolute_max_metadata_size", 20 * 1024),
    # The Go client pings every 30 seconds, with or without calls: gRPC would end such a connection ("too_many_pings"). Floods still end.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    # A header that could not be parsed would stay in the connection's table, and break whoever shares the connection.
    ("grpc.http2.hpack_table_size.decoder", 0),
)


def log_warnings(settings: Settings) -> None:
    """Log unknown variables, and settings that work but are not safe."""
    for problem in settings.warnings:
        logs.event("questionable setting", level="warning", problem=problem)


def listener_options(settings: Settings) -> list[tuple[str, Any]]:
    """Of the listener for calls, whose connections may be ended so that balancers spread them anew."""
    age = settings.connection_max_age
    if age is None:
        return list(LISTENER_OPTIONS)
    millisecond = timedelta(milliseconds=1)
    return [
        *LISTENER_OPTIONS,
        ("grpc.max_connection_age_ms", age // millisecond),
        ("grpc.max_connection_age_grace_ms", settings.shutdown_grace // millisecond),
    ]


def signing_keys(settings: Settings) -> SigningKeys | None:
    """Return the keys that verify tokens, not read yet; None if calls need no token."""
    if settings.auth == "none" or settings.jwks is None:
        return None
    return SigningKeys(jwks_source(settings.jwks), refresh=settings.jwks_refresh, max_age=settings.jwks_max_age, retry=_JWKS_RETRY)


def authenticator(settings: Settings, keys: SigningKeys | None) -> Authenticator:
    """Return what verifies tokens with these keys, or accepts every call if there are none."""
    if keys is None or settings.jwt_issuer is None or settings.jwt_audience is None:
        return Anonymous()
    rules = TokenRules(issuer=settings.jwt_issuer, audience=settings.jwt_audience, max_lifetime=settings.jwt_max_lifetime)
    return JwtAuthenticator(keys, rules)


def tracing(settings: Settings) -> "Tracing | None":
    """None where nobody asks for traces, and where they cannot be had, which is no reason not to serve."""
    if not settings.wants_traces:
        return None
    try:
        from service.observability.tracing import Tracing

        return Tracing(trusts_callers=settings.auth == "jwt" or settings.tls_client_ca is not None)
    except ImportError:
        problem = (
            "OTEL_... ask for them, and OpenTelemetry is not installed: see requirements/production.txt, or set OTEL_SDK_DISABLED=true"
        )
    except TracingUnavailable as exc:
        problem = str(exc)
    except Exception as exc:  # OpenTelemetry's own complaint of one of its variables
        problem = f"OpenTelemetry cannot use a variable OTEL_... ({type(exc).__name__})"
    logs.event("no traces", level="warning", problem=problem)
    return None


def database(settings: Settings, tracing: "Tracing | None" = None) -> contextlib.AbstractAsyncContextManager[Database]:
    """The catalog's, which need not be there yet.

    Raises:
        InvalidSettings: there is no URL.
    """
    limits = Limits(
        pool_size=settings.pool_size,
        connect=settings.connect_timeout,
        acquire=settings.acquire_timeout,
        statement=settings.request_timeout,
        max_age=settings.pool_max_age,
    )
    return open_database(
        settings.require_database_url(),
        limits,
        pooled=settings.pooler == "transaction",
        max_replication_lag=settings.max_replication_lag,
        tracing=tracing,
    )
