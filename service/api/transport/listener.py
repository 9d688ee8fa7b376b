"""Listeners: gRPC servers on one address each."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import grpc

from service.address import Address, port_taken
from service.api.interceptor import Interceptor
from service.api.transport.grpc_server import new_server
from service.errors import InvalidSettings

MAX_REQUEST_SIZE = 16 * 1024
"""Bytes of a request message, before and after decompression."""

MAX_CONNECTIONS = 2000
"""Connections of a listener. gRPC closes a further one immediately. Without a limit, clients could use all descriptors of the process."""

OPTIONS = (
    ("grpc.so_reuseport", 0),  # with it, a second server could listen on the same port and would get half of the calls
    # Per connection. Twice the limit of Envoy's cluster, because gRPC core also counts closed streams that it has not cleaned up.
    ("grpc.max_concurrent_streams", 2000),
    # If gRPC's own queues are full, it returns CANCELLED, which clients do not retry.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # A valid request has less than 1 KiB. gRPC core rejects a larger message as soon as it has read the length, before authentication.
    ("grpc.max_receive_message_length", MAX_REQUEST_SIZE),
    # Envoy's limit of 16 KiB, and 4 KiB for the headers that Envoy adds. The limits are equal, because gRPC core rejects at random
    # between different ones.
    ("grpc.max_metadata_size", 20 * 1024),
    ("grpc.absolute_max_metadata_size", 20 * 1024),
    # The Go client pings every 30 seconds, even without calls. By default, gRPC closes such a connection (too_many_pings).
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    # No table: a header that cannot be parsed would stay in it, and fail the other calls of the connection.
    ("grpc.http2.hpack_table_size.decoder", 0),
)
"""Options of every listener, in addition to `MAX_CONNECTIONS`."""

# certificate.py rejects most of these with a better error.
_UNUSABLE_CERTIFICATE = (
    "BACKUPS_TLS_CERT, BACKUPS_TLS_KEY: gRPC cannot use the certificate or the key, although OpenSSL can: "
    "use another kind of key, or set GRPC_VERBOSITY=error to see gRPC's reason"
)


class Listener:
    """A gRPC server on one address. Services are added to `server` before the start."""

    def __init__(
        self,
        address: Address,
        interceptor: Interceptor,
        *,
        setting: str,
        options: Sequence[tuple[str, Any]] = (),
        credentials: grpc.ServerCredentials | None = None,
        accepts_concurrently: bool = True,
    ) -> None:
        """
        Args:
            interceptor: of this listener alone, because it caches the listener's methods.
            setting: the variable that contains the address, for errors.
            options: in addition to `OPTIONS`.
            credentials: None for plaintext.
            accepts_concurrently: False to accept one call of a method at a time.
        """
        self.address = address
        """After the start, port 0 is replaced by the port in use."""
        self.interceptor = interceptor
        connections = ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS)
        self.server = new_server([interceptor], [*OPTIONS, connections, *options], accepts_concurrently=accepts_concurrently)
        self._setting, self._credentials = setting, credentials

    async def start(self) -> None:
        """Listen and answer calls.

        Raises:
            PortTaken: the address cannot be used.
            InvalidSettings: gRPC cannot use the certificate or the key.
        """
        self.address = self.address._replace(port=self._bind())
        await self.server.start()

    def _bind(self) -> int:
        address = str(self.address)
        try:
            if self._credentials is None:
                return self.server.add_insecure_port(address)
            return self.server.add_secure_port(address, self._credentials)
        except RuntimeError as exc:
            if self._credentials is not None and self._can_bind():
                raise InvalidSettings(_UNUSABLE_CERTIFICATE) from exc
            raise port_taken(self.address, setting=self._setting) from exc

    def _can_bind(self) -> bool:
        """Return True if the address is free. Binds it, so that the server must not be started afterwards."""
        try:
            return bool(self.server.add_insecure_port(str(self.address)))
        except RuntimeError:
            return False

    def stop(self, grace: timedelta) -> "asyncio.Future[None]":
        """Stop listening, send GOAWAY, and cancel the calls that are not finished after `grace`.

        Returns: a future that is done when the listener has stopped.
        """
        return asyncio.ensure_future(self.server.stop(grace.total_seconds()))
