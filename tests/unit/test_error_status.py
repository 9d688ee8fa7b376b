"""The table of answers: whole, and never too large for a client to receive."""

import inspect
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from service import errors
from service.api.error_status import DETAILS_KEY, DOMAIN, INTERNAL, status_of, trailers

_ERRORS: list[Any] = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if errors.RequestError in kind.__mro__[1:]]


def test_every_error_of_a_request_has_a_row() -> None:
    """Every error of a call has a row of its own, not the row of unexpected errors."""
    assert [kind.__name__ for kind in _ERRORS if status_of(kind.__new__(kind)) is INTERNAL] == []


def test_what_is_not_foreseen_is_internal_and_says_nothing() -> None:
    """An error that the table does not know gets a fixed text."""
    error = RuntimeError("password=hunter2")
    status = status_of(error)
    assert status.code is StatusCode.INTERNAL
    assert b"hunter2" not in b"".join(str(value).encode() for value in trailers(status, error, "id"))


@pytest.mark.parametrize("character", ["x", "\x01", "Ж", "\U0001f418"])
def test_never_larger_than_a_client_receives(character: str) -> None:
    """A status with its details stays under 4 KiB, however long the id that it echoes; it is cut."""
    error = errors.BackupNotFound(character * 100_000)
    metadata = dict(trailers(status_of(error), error, "r" * 100))
    size = sum(len(key) + len(value) + 32 for key, value in metadata.items())
    assert size < 2048

    details = status_pb2.Status.FromString(metadata[DETAILS_KEY]).details
    resource = error_details_pb2.ResourceInfo()
    assert any(detail.Unpack(resource) for detail in details)
    assert resource.resource_name == character * 128


def test_details_of_every_error() -> None:
    """Each answer has one ErrorInfo, whose reason is in capitals, and a RequestInfo."""
    for error in [
        errors.InvalidPageToken(),
        errors.BackupNotFound("a"),
        errors.CatalogUnavailable(),
        errors.UnknownService("x"),
        ValueError(),
    ]:
        status = status_of(error)
        answer = status_pb2.Status.FromString(dict(trailers(status, error, "id-1"))[DETAILS_KEY])
        assert (answer.code, answer.message) == (status.code.value[0], status.text)
        infos = [_unpacked(detail, error_details_pb2.ErrorInfo()) for detail in answer.details]
        requests = [_unpacked(detail, error_details_pb2.RequestInfo()) for detail in answer.details]
        [info], [request] = [x for x in infos if x], [x for x in requests if x]
        assert info.domain == DOMAIN
        assert info.reason == info.reason.upper()
        assert request.request_id == "id-1"


def _unpacked(detail: Any, message: Any) -> Any:
    return message if detail.Unpack(message) else None
