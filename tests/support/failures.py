"""An error as a client receives it."""

from collections.abc import Awaitable
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2


class Failure(NamedTuple):
    """A status with all its details."""

    code: grpc.StatusCode
    message: str
    reason: str
    request_id: str
    violations: list[tuple[str, str]]
    resource: tuple[str, str] | None
    trailers: dict[str, Any]


async def failure(call: Awaitable[Any]) -> Failure:
    """Return the error of a failed call, after checking the details that all errors of the service have."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    assert sum(len(key) + len(value) + 32 for key, value in trailers.items()) < 4096

    [info] = _of(status, error_details_pb2.ErrorInfo)
    [request] = _of(status, error_details_pb2.RequestInfo)
    assert info.domain == "greenplum-backup-service"
    assert trailers["x-request-id"] == request.request_id
    violations = [(v.field, v.description) for bad in _of(status, error_details_pb2.BadRequest) for v in bad.field_violations]
    resources = [(found.resource_type, found.resource_name) for found in _of(status, error_details_pb2.ResourceInfo)]
    return Failure(
        error.code(), status.message, info.reason, request.request_id, violations, resources[0] if resources else None, trailers
    )  # fmt: skip


def _of(status: status_pb2.Status, kind: type[Message]) -> list[Any]:
    found = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found
