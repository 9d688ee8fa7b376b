"""Calls of a running service for the commands `list`, `get` and `health`.

The service is not trusted: its responses are bounded and checked before they are printed, and no response causes a traceback.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import pb
from service.cli.client import tls_probe
from service.cli.client.credentials import ReadToken
from service.cli.client.service_address import ServiceAddress
from service.contract import PAGE_SIZE_MAX
from service.errors import CallFailed, CommandError

_DETAILS_KEY = "grpc-status-details-bin"
_MESSAGE_MAX = 1 << 20  # bytes; the largest page has half of it, and an empty backup of 2 bytes takes 100 bytes of memory
_EMPTY_PAGES_MAX = 1000

_Response = TypeVar("_Response")


class Endpoint(NamedTuple):
    """A service, and how to connect to it."""

    address: ServiceAddress
    tls: bool = False
    ca: bytes | None = None
    """Certificates to trust instead of gRPC's own list, PEM."""
    server_name: str | None = None
    """Host name that the certificate must have, if it is not the address's."""
    timeout: float = 30.0
    """Seconds for each call."""


class Credentials(NamedTuple):
    """Source of the bearer token for each call."""

    read_token: ReadToken
    is_insecure: bool = False
    """True if the token may be sent without TLS to another machine."""

    def metadata(self, endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
        """Return the metadata of the next call to the endpoint.

        Raises:
            CommandError: the token cannot be read, or would be sent in plaintext to another machine.
        """
        token = self.read_token()
        if token is None:
            return ()
        if not (endpoint.tls or endpoint.address.is_local or self.is_insecure):
            raise CommandError(
                f"the token was not sent: {endpoint.address.text} is not on this machine, and without TLS the network can read it. "
                "Use --tls, or --ca-file for a certificate of your own authority; to send it anyway, use --insecure"
            )
        return (("authorization", f"Bearer {token}"),)


async def pages(
    endpoint: Endpoint, credentials: Credentials, request: pb.ListBackupsRequest | pb.ListClusterBackupsRequest, *, follow: bool
) -> AsyncGenerator[pb.ListBackupsResponse]:  # fmt: skip
    """Yield one page of the backups of a folder or a cluster, or with `follow` also all pages after it.

    Raises:
        CommandError: the token cannot be sent.
        CallFailed: the service cannot be reached, returns an error, or its responses cannot be used.
    """
    walk = _Walk()
    async with _channel(endpoint) as channel:
        call = _list_method(channel, request)
        while True:
            page = _decoded(await call(request, timeout=endpoint.timeout, metadata=credentials.metadata(endpoint)))
            _check_page(page)
            walk.check(page)
            yield page
            request.page_token = page.next_page_token
            if not (follow and page.next_page_token):
                return


def _list_method(channel: grpc.aio.Channel, request: pb.ListBackupsRequest | pb.ListClusterBackupsRequest) -> Any:
    """Return the method of the request. Both responses have the same field numbers, so both are read as ListBackupsResponse."""
    of_folder = isinstance(request, pb.ListBackupsRequest)
    method = f"/{pb.BACKUP_SERVICE}/List" if of_folder else f"/{pb.CLUSTER_SERVICE}/ListBackups"
    serialize = type(request).SerializeToString
    return channel.unary_unary(method, request_serializer=serialize, response_deserializer=pb.ListBackupsResponse.FromString)


class _Walk:
    """Detects page tokens that repeat, in constant memory.

    Brent's algorithm: each token is compared with one earlier token, which is replaced after 1, 2, 4, 8, ... pages. Every cycle is found.
    """

    def __init__(self) -> None:
        self._earlier_token = ""
        self._pages = 0
        self._power = 1
        self._empty_pages = 0

    def check(self, page: pb.ListBackupsResponse) -> None:
        token = page.next_page_token
        if token and token == self._earlier_token:
            raise CallFailed("the service repeats its page tokens, so this list would never end")
        self._empty_pages = 0 if page.backups else self._empty_pages + 1
        if token and self._empty_pages >= _EMPTY_PAGES_MAX:
            raise CallFailed(f"the service sent {_EMPTY_PAGES_MAX} empty pages in a row")
        self._pages += 1
        if self._pages == self._power:
            self._earlier_token, self._pages, self._power = token, 0, 2 * self._power


async def get(endpoint: Endpoint, credentials: Credentials, request: pb.GetBackupRequest) -> pb.Backup:
    """Return one backup.

    Raises:
        CommandError: the token cannot be sent.
        CallFailed: the service cannot be reached, returns an error, or its response cannot be used.
    """
    async with _channel(endpoint) as channel:
        stub = pb.BackupServiceStub(channel)
        backup = _decoded(await stub.Get(request, timeout=endpoint.timeout, metadata=credentials.metadata(endpoint)))
    _check_backup(backup)
    return backup


async def is_serving(endpoint: Endpoint) -> bool:
    """Return True if the service reports that it is ready for calls. No token is sent.

    Raises:
        CallFailed: the service cannot be reached or returns an error.
    """
    async with _channel(endpoint, use_proxy=False) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types lack the methods
        response = _decoded(await stub.Check(health_pb2.HealthCheckRequest(), timeout=endpoint.timeout))
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


@contextlib.asynccontextmanager
async def _channel(endpoint: Endpoint, *, use_proxy: bool = True) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel. A proxy from the environment (https_proxy, http_proxy) is not used for local addresses."""
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", _MESSAGE_MAX),
        ("grpc.enable_http_proxy", int(use_proxy and not endpoint.address.is_local)),
    ]
    if endpoint.server_name is not None:
        options.append(("grpc.ssl_target_name_override", endpoint.server_name))
    if endpoint.tls:
        channel = grpc.aio.secure_channel(endpoint.address.target, grpc.ssl_channel_credentials(endpoint.ca), options=options)
    else:
        channel = grpc.aio.insecure_channel(endpoint.address.target, options=options)
    async with channel:
        try:
            yield channel
        except grpc.aio.AioRpcError as exc:
            raise CallFailed(await _error_text(exc, endpoint)) from exc


def _decoded(response: _Response | None) -> _Response:
    """Return the response; grpc.aio returns None for bytes that it cannot decode."""
    if response is None:
        raise CallFailed("the response is not a message of this API: is --address the address of a backup service?")
    return response


def _check_page(page: pb.ListBackupsResponse) -> None:
    if len(page.backups) > PAGE_SIZE_MAX:
        raise CallFailed(f"the service sent a page of {len(page.backups)} backups, but the API allows at most {PAGE_SIZE_MAX}")
    for backup in page.backups:
        _check_backup(backup)


def _check_backup(backup: pb.Backup) -> None:
    for time in (backup.created_at, backup.started_at):
        try:
            time.ToJsonString()
        except ValueError:
            raise CallFailed(f"the service sent a backup with a time outside of years 1 to 9999: {time.seconds} s") from None


async def _error_text(error: grpc.aio.AioRpcError, endpoint: Endpoint) -> str:
    """Return the status, the message and the details of an error; for a failed connection one line with the cause."""
    metadata = dict(error.trailing_metadata() or ())
    packed = metadata.get(_DETAILS_KEY)
    if error.code() is grpc.StatusCode.UNAVAILABLE and packed is None:
        return await _connection_error_text(error, endpoint)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and packed is None:
        return f"{endpoint.address.text} did not answer within {endpoint.timeout:g} s: is --address the address of a backup service?"
    lines = [f"{error.code().name}: {error.details()}"]
    if isinstance(packed, bytes):
        lines += _details(packed)
    return "\n".join(lines)


async def _connection_error_text(error: grpc.aio.AioRpcError, endpoint: Endpoint) -> str:
    address = endpoint.address
    if endpoint.tls and await tls_probe.accepts_plaintext(address):
        return f"the service at {address.text} does not use TLS: call it without --tls and --ca-file, or use its TLS port"
    if endpoint.tls and (cause := await tls_probe.certificate_error(address, endpoint.ca, endpoint.server_name)):
        return (
            f"the certificate of the service at {address.text} was not accepted: {cause}. "
            "Use --ca-file for a certificate of your own authority, and --server-name if the certificate has another host name"
        )
    if not endpoint.tls and await tls_probe.accepts_tls(address):
        return f"the service at {address.text} uses TLS: add --tls, or --ca-file for a certificate of your own authority"
    return f"no service answers at {address.text}: is it running, and is --address correct? ({_first_line(error.details())})"


def _details(packed: bytes) -> list[str]:
    lines = []
    bad_request, request = error_details_pb2.BadRequest(), error_details_pb2.RequestInfo()
    try:
        for detail in status_pb2.Status.FromString(packed).details:
            if detail.Unpack(bad_request):
                lines += [f"  {violation.field}: {violation.description}" for violation in bad_request.field_violations]
            elif detail.Unpack(request):
                lines.append(f"  request id: {request.request_id}")
    except DecodeError:
        lines.append("  (the details of this error are not well-formed)")
    return lines


def _first_line(text: str | None) -> str:
    return (text or "").split("\n", 1)[0][:300]
