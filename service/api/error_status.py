"""The error status of each error: code, reason and text. An error without a row is a bug, and gets the status `INTERNAL`.

The texts are fixed. gRPC percent-encodes the message of a status into the trailers, and does not send a message that is not valid Unicode.
Receivers accept trailers of up to 8 KiB. Therefore only the details contain values from a request, and these are truncated.
"""

import random
from typing import Any, NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from service import errors, pb
from service.api.request_id import REQUEST_ID_KEY

DOMAIN = "greenplum-backup-service"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

_PUSHBACK_MS = (500, 1500)  # a range, so that rejected clients do not retry at the same moment
_QUOTED_MAX_LENGTH = 128  # characters of at most 4 bytes, so that the trailers stay far below 4 KiB


class Status(NamedTuple):
    """Code, reason and text with which a failed call is answered."""

    code: StatusCode
    reason: str
    text: str


INTERNAL = Status(StatusCode.INTERNAL, "INTERNAL", "Internal error. Quote the request id when you report it.")

TABLE: dict[type[Exception], Status] = {
    errors.InvalidRequest: Status(StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "The request violates limits of the API."),
    errors.InvalidPageToken: Status(StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN", "The page token is not valid for this list."),
    errors.UndecodableRequest: Status(
        StatusCode.INVALID_ARGUMENT, "UNDECODABLE_REQUEST", "The request's bytes are not a message of this method."
    ),
    errors.BackupNotFound: Status(StatusCode.NOT_FOUND, "BACKUP_NOT_FOUND", "There is no such backup."),
    errors.ApiEndpointNotFound: Status(StatusCode.NOT_FOUND, "API_ENDPOINT_NOT_FOUND", "There is no such endpoint."),
    errors.UnknownService: Status(StatusCode.NOT_FOUND, "UNKNOWN_SERVICE", "There is no such service."),
    errors.TooManyWatchers: Status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS", "Too many clients watch the health of this server."),
    errors.Unauthenticated: Status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "A valid bearer token is required."),
    errors.Forbidden: Status(StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", "The caller may not read this folder."),
    errors.KeysUnavailable: Status(StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE", "Credentials cannot be verified now. Try again."),
    errors.Overloaded: Status(StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "Too many concurrent calls. Try again later."),
    errors.ShuttingDown: Status(StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "This server is shutting down. Try again."),
    errors.DeadlineExceeded: Status(StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "The call took longer than is allowed."),
    errors.CallInterrupted: Status(StatusCode.UNAVAILABLE, "CALL_INTERRUPTED", "The call was interrupted. Try again."),
    errors.CatalogUnavailable: Status(StatusCode.UNAVAILABLE, "CATALOG_UNAVAILABLE", "The catalog is unavailable. Try again."),
}


def status_of(error: Exception) -> Status:
    """Return the status of an error's class, or of its nearest base class that has one."""
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), INTERNAL)


def trailers(status: Status, error: Exception, request_id: str) -> tuple[tuple[str, Any], ...]:
    """Return the trailing metadata of an error: the request id, `google.rpc.Status` with all details, and the retry delay if any."""
    details = [
        error_details_pb2.ErrorInfo(reason=status.reason, domain=DOMAIN),
        error_details_pb2.RequestInfo(request_id=request_id),
        *_details(error),
    ]
    rich_status = status_pb2.Status(code=status.code.value[0], message=status.text, details=[_packed(detail) for detail in details])
    pushback = ((PUSHBACK_KEY, str(random.randint(*_PUSHBACK_MS))),) if isinstance(error, errors.Overloaded) else ()  # noqa: S311
    return ((REQUEST_ID_KEY, request_id), (DETAILS_KEY, rich_status.SerializeToString()), *pushback)


def _details(error: Exception) -> list[Message]:
    match error:
        case errors.InvalidRequest(violations=violations):
            violations_found = [
                error_details_pb2.BadRequest.FieldViolation(field=violation.field, description=violation.description)
                for violation in violations
            ]
            return [error_details_pb2.BadRequest(field_violations=violations_found)]
        case errors.BackupNotFound(backup_id=backup_id):
            return [_absent(pb.Backup, backup_id, "The backup does not exist, or the caller may not read it.")]
        case errors.ApiEndpointNotFound(api_endpoint_id=api_endpoint_id):
            return [_absent(pb.ApiEndpoint, api_endpoint_id, "The endpoint does not exist.")]
        case _:
            return []


def _absent(kind: type[Message], name: str, description: str) -> error_details_pb2.ResourceInfo:
    return error_details_pb2.ResourceInfo(
        resource_type=kind.DESCRIPTOR.full_name, resource_name=name[:_QUOTED_MAX_LENGTH], description=description
    )


def _packed(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed
