"""A caller of the API: what `list`, `get` and `health` of the command ask a running service."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import pb
from service.errors import CallFailed

_DETAILS_KEY = "grpc-status-details-bin"
_MAX_MESSAGE = 16 << 20  # bytes; a page has at most half a megabyte


class Endpoint(NamedTuple):
    """Where the service is, and how to be let in."""

    address: str
    tls: bool = False
    ca_file: Path | None = None
    """Certificates to trust in place of the system's; with them there is TLS."""
    token: str | None = None
    timeout: float = 30.0
    """Seconds for each call."""


async def pages(
    endpoint: Endpoint, folder_id: str, *, page_size: int, page_token: str, follow: bool
) -> AsyncGenerator[pb.ListBackupsResponse]:  # fmt: skip
    """A folder's backups, a page at a time: one page, or all from there on.

    Raises:
        CallFailed: the service answers an error, or is not there.
    """
    async with _channel(endpoint) as channel:
        stub = pb.BackupServiceStub(channel)
        while True:
            request = pb.ListBackupsRequest(folder_id=folder_id, page_size=page_size, page_token=page_token)
            page = await stub.List(request, timeout=endpoint.timeout, metadata=_metadata(endpoint))
            yield page
            page_token = page.next_page_token
            if not (follow and page_token):
                return


async def get(endpoint: Endpoint, backup_id: str) -> pb.Backup:
    """One backup.

    Raises:
        CallFailed: the service answers an error, or is not there.
    """
    async with _channel(endpoint) as channel:
        request = pb.GetBackupRequest(backup_id=backup_id)
        return await pb.BackupServiceStub(channel).Get(request, timeout=endpoint.timeout, metadata=_metadata(endpoint))


async def is_serving(endpoint: Endpoint) -> bool:
    """Whether the service says that it should be sent calls.

    Raises:
        CallFailed: the service answers an error, or is not there.
    """
    async with _channel(endpoint) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types lack the methods
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=endpoint.timeout)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@contextlib.asynccontextmanager
async def _channel(endpoint: Endpoint) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_receive_message_length", _MAX_MESSAGE)]
    if endpoint.tls or endpoint.ca_file:
        roots = endpoint.ca_file.read_bytes() if endpoint.ca_file else None
        channel = grpc.aio.secure_channel(endpoint.address, grpc.ssl_channel_credentials(roots), options=options)
    else:
        channel = grpc.aio.insecure_channel(endpoint.address, options=options)
    async with channel:
        try:
            yield channel
        except grpc.aio.AioRpcError as exc:
            raise CallFailed(_explained(exc, endpoint.address)) from exc


def _metadata(endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {endpoint.token}"),) if endpoint.token else ()


def _explained(error: grpc.aio.AioRpcError, address: str) -> str:
    """The status, the message and the details; a server that is not there, in one line."""
    metadata = dict(error.trailing_metadata() or ())
    packed = metadata.get(_DETAILS_KEY)
    if error.code() is grpc.StatusCode.UNAVAILABLE and packed is None:
        return f"no service answers at {address}: is it running, and is --address right? ({_first_line(error.details())})"
    lines = [f"{error.code().name}: {error.details()}"]
    if isinstance(packed, bytes):
        lines += _details(status_pb2.Status.FromString(packed))
    return "\n".join(lines)


def _details(status: status_pb2.Status) -> list[str]:
    lines = []
    bad_request, request = error_details_pb2.BadRequest(), error_details_pb2.RequestInfo()
    for detail in status.details:
        if detail.Unpack(bad_request):
            lines += [f"  {violation.field}: {violation.description}" for violation in bad_request.field_violations]
        elif detail.Unpack(request):
            lines.append(f"  request id: {request.request_id}")
    return lines


def _first_line(text: str | None) -> str:
    return (text or "").split("\n", 1)[0][:300]
