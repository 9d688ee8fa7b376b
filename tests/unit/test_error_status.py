"""The table of error statuses: complete, and small enough for every client."""

import inspect
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from service import errors
from service.api.error_status import DETAILS_KEY, DOMAIN, INTERNAL, status_of, trailers

_ERRORS: list[Any] = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if errors.RequestError in kind.__mro__[1:]]


def test_every_request_error_has_a_row() -> None:
    """Every subclass of RequestError has a status other than that of unexpected errors."""
    assert [kind.__name__ for kind in _ERRORS if status_of(kind.__new__(kind)) is INTERNAL] == []


def test_unexpected_error() -> None:
    """An error without a row is INTERNAL, and its text is not sent."""
    error = RuntimeError("password=hunter2")
    status = status_of(error)
    assert status.code is StatusCode.INTERNAL
    assert b"hunter2" not in b"".join(str(value).encode() for value in trailers(status, error, "id"))


@pytest.mark.parametrize("character", ["x", "\x01", "Ж", "\U0001f418"])
def test_size_of_the_trailers(character: str) -> None:
    """The trailers have less than 2 KiB for any id, because the details quote at most 128 characters of it."""
    error = errors.BackupNotFound(character * 100_000)
    metadata = dict(trailers(status_of(error), error, "r" * 100))
    size = sum(len(key) + len(value) + 32 for key, value in metadata.items())
    assert size < 2048

    details = status_pb2.Status.FromString(metadata[DETAILS_KEY]).details
    resource = error_details_pb2.ResourceInfo()
    assert any(detail.Unpack(resource) for detail in details)
    assert resource.resource_name == character * 128


def test_details_of_every_error() -> None:
    """The details of every error are one ErrorInfo, with a reason in capitals, and one RequestInfo."""
    for error in [
        errors.InvalidPageToken(),
        errors.BackupNotFound("a"),
        errors.CatalogUnavailable(),
        errors.UnknownService("x"),
        ValueError(),
    ]:
        status = status_of(error)
        response = status_pb2.Status.FromString(dict(trailers(status, error, "id-1"))[DETAILS_KEY])
        assert (response.code, response.message) == (status.code.value[0], status.text)
        infos = [_unpacked(detail, error_details_pb2.ErrorInfo()) for detail in response.details]
        requests = [_unpacked(detail, error_details_pb2.RequestInfo()) for detail in response.details]
        [info], [request] = [x for x in infos if x], [x for x in requests if x]
        assert info.domain == DOMAIN
        assert info.reason == info.reason.upper()
        assert request.request_id == "id-1"


def _unpacked(detail: Any, message: Any) -> Any:
    return message if detail.Unpack(message) else None
