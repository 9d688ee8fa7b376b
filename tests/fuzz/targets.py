"""Fuzz targets: functions of bytes that raise an exception if the code under test behaves incorrectly.

Any bytes must give a correct result or one of the documented errors of service/errors.py.
"""

import asyncio
import base64
import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import grpc
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from google.rpc import status_pb2
from grpc import StatusCode

from service import pb
from service.api.admission import Admission, IncompleteRequests
from service.api.auth.authentication import Anonymous
from service.api.backup_service import BackupService
from service.api.client_address import ClientAddresses
from service.api.cluster_service import ClusterService
from service.api.error_status import DETAILS_KEY
from service.api.interceptor import Interceptor
from service.api.request_id import REQUEST_ID_KEY
from service.backup import is_backup_id
from service.entry import Attempt, Entry, Listed, Unusable
from service.errors import CommandError, InvalidListing, InvalidPageToken
from service.importers import gpbackup, walg
from service.observability.metrics import Metrics
from service.page_token import DEFAULT_KEY, PageTokens
from service.postgres.catalog import CLUSTER_FOLDERS, Catalog
from tests.support.page_tokens import cluster_scope, folder_scope

Target: TypeAlias = Callable[[bytes], None]

_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999998, tzinfo=UTC)


@contextlib.contextmanager
def page_token() -> Iterator[Target]:
    """Fuzz page tokens. The input is an id of a folder, a line feed, and a token, whose bytes are also sealed with the default key.

    A token that opens is the canonical encoding of a position that the catalog can hold, and does not open for the cluster with that id.
    """
    tokens, cipher = PageTokens(), AESSIV(DEFAULT_KEY)

    def check(token: str, folder_id: str) -> None:
        scope = folder_scope(folder_id)
        with contextlib.suppress(InvalidPageToken):
            position = tokens.open(token, scope)
            assert (position is None) == (token == "")
            if position is not None:
                assert is_backup_id(position.id)
                assert _FIRST <= position.created_at <= _LAST
                assert tokens.seal(position, scope) == token
                with contextlib.suppress(InvalidPageToken):
                    tokens.open(token, cluster_scope(folder_id))
                    raise AssertionError("a token of a folder opens for a cluster")

    def target(data: bytes) -> None:
        folder, _, rest = data.partition(b"\n")
        folder_id = folder.decode(errors="replace")
        check(rest.decode(errors="replace"), folder_id)
        if rest:
            sealed = cipher.encrypt(rest, folder_scope(folder_id).associated_data)
            check(base64.urlsafe_b64encode(b"\x01" + sealed).rstrip(b"=").decode(), folder_id)

    yield target


class _Aborted(grpc.aio.AbortError):
    """Exception by which gRPC ends a call with an error."""


class _Context:
    """The part of gRPC's context that a call uses: one request, without metadata or deadline."""

    def __init__(self, request: bytes) -> None:
        self._request = request

    async def read(self) -> bytes:
        return self._request

    response: tuple[StatusCode, status_pb2.Status] | None = None

    def peer(self) -> str:
        return "fuzzing"

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        assert [key for key, _ in metadata] == [REQUEST_ID_KEY]

    async def abort(self, code: StatusCode, text: str, trailers: Iterable[tuple[str, Any]]) -> NoReturn:
        encoded: bytes = dict(trailers)[DETAILS_KEY]
        assert len(encoded) < 4096, "gRPC drops a status of this size"
        self.response = code, status_pb2.Status.FromString(encoded)
        raise _Aborted  # as gRPC does; the interceptor catches it


class _EmptyDatabase:
    """A database without backups that accepts the arguments that PostgreSQL accepts. tests/api/test_bad_input.py uses a real one.

    Every cluster has a folder, so that pages of clusters are read too.
    """

    def trace(self, query: str) -> AbstractContextManager[Callable[[], None]]:
        return contextlib.nullcontext(lambda: None)

    async def fetch(self, query: str, *columns: list[str], on_connected: Callable[[], None]) -> list[Any]:
        for column in columns:
            for argument in column:
                assert "\0" not in argument
                argument.encode()
        if len(columns) > 1:  # pages
            sizes, times, *_ = columns
            assert all(1 <= int(size) <= 1000 for size in sizes)
            assert all(_FIRST <= datetime.fromisoformat(time) <= datetime.max.replace(tzinfo=UTC) for time in times)
            return [{0: 1, "elements": None, "lengths": None}]
        return [{0: 1, "folder_id": "f1"}] if query == CLUSTER_FOLDERS else []

    async def fetch_large(
        self, client: str, query: str, size: int, last_at: datetime, *ids: str, on_connected: Callable[[], None]
    ) -> list[Any]:
        assert client
        columns = [[str(size)], [last_at.isoformat()], *([each] for each in ids)]
        return await self.fetch(query, *columns, on_connected=on_connected)


@contextlib.contextmanager
def request() -> Iterator[Target]:
    """Fuzz requests, with the interceptor, the handlers and an empty catalog. The input is a byte that selects the method, and the request.

    The response is an empty page, INVALID_ARGUMENT or NOT_FOUND.
    """
    loop = asyncio.new_event_loop()
    handlers = loop.run_until_complete(_wrapped_handlers())

    def target(data: bytes) -> None:
        if not data:
            return
        context = _Context(data[1:])
        response = loop.run_until_complete(handlers[data[0] % len(handlers)](None, context))
        if context.response:
            code, status = context.response
            assert code in (StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND), status
            assert status.code == code.value[0]
            assert status.details
        else:
            assert data[0] % len(handlers), "Get finds nothing in an empty catalog"
            assert response == b""

    try:
        yield target
    finally:
        loop.close()


async def _wrapped_handlers() -> list[Any]:
    """Return the handlers of three methods over an empty catalog, wrapped by the interceptor."""
    catalog, page_tokens = Catalog(_EmptyDatabase()), PageTokens()  # type: ignore[arg-type]
    backups = BackupService(catalog=catalog, page_tokens=page_tokens)
    clusters = ClusterService(catalog=catalog, page_tokens=page_tokens)
    interceptor = Interceptor(
        admission=Admission(100),
        incomplete=IncompleteRequests(100),
        authenticator=Anonymous(),
        clients=ClientAddresses(),
        metrics=Metrics(),
        request_timeout=timedelta(seconds=10),
    )
    methods: list[tuple[str, Any]] = [
        (f"/{pb.BACKUP_SERVICE}/Get", grpc.unary_unary_rpc_method_handler(backups.Get, pb.GetBackupRequest.FromString)),
        (f"/{pb.BACKUP_SERVICE}/List", grpc.unary_unary_rpc_method_handler(backups.List, pb.ListBackupsRequest.FromString)),
        (
            f"/{pb.CLUSTER_SERVICE}/ListBackups",
            grpc.unary_unary_rpc_method_handler(clusters.ListBackups, pb.ListClusterBackupsRequest.FromString),
        ),
    ]

    return [await _wrapped(interceptor, *method) for method in methods]


async def _wrapped(interceptor: Interceptor, method: str, handler: Any) -> Any:
    async def continuation(_: object) -> Any:
        return handler

    details: Any = type("Details", (), {"method": method, "invocation_metadata": ()})
    found: Any = await interceptor.intercept_service(continuation, details)
    return found.stream_unary


class _Slow:
    """Stream that returns a few bytes at a time, as a pipe may."""

    def __init__(self, data: bytes, max_size: int) -> None:
        self._stream, self._max_size = io.BytesIO(data), max_size

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, self._max_size))


@contextlib.contextmanager
def import_walg() -> Iterator[Target]:
    """Fuzz the output of `wal-g backup-list --detail --json`, which is read or rejected with an error of one line.

    An input that is read is JSON and has an entry for each element. The size of the pieces in which it is read does not matter.
    """

    def target(data: bytes) -> None:
        whole = _listing(lambda: walg.read(io.BytesIO(data), id_prefix="cluster"), InvalidListing)
        assert _listing(lambda: walg.read(_Slow(data, 3), id_prefix="cluster"), InvalidListing) == whole
        if whole is not None:
            assert len(json.loads(data.decode("utf-8-sig"))) == len(whole)

    yield target


@contextlib.contextmanager
def import_gpbackup() -> Iterator[Target]:
    """Fuzz the file gpbackup_history.db, which is read or rejected with an error of one line."""
    with tempfile.TemporaryDirectory(prefix="backups-fuzz-") as folder:
        history = Path(folder, "gpbackup_history.db")

        def target(data: bytes) -> None:
            history.write_bytes(data)
            _listing(
                lambda: gpbackup.read(history, id_prefix="cluster", timezone="Europe/Berlin", backup_dir=Path(folder)),
                InvalidListing,
            )

        yield target


def _listing(read: Callable[[], Iterable[Listed]], rejection: type[CommandError]) -> list[Listed] | None:
    """Return the entries, after checking that the catalog can hold each; None if the listing is rejected."""
    try:
        entries = list(read())
    except rejection as exc:
        _check_one_line(str(exc))
        return None
    for entry in entries:
        _check_entry(entry)
    return entries


def _check_entry(entry: Listed) -> None:
    """Check that the catalog can hold an entry, and a terminal can show its messages."""
    match entry:
        case Entry():
            assert is_backup_id(entry.id)
            assert _FIRST <= entry.started_at <= entry.created_at <= _LAST
            assert entry.size is None or 0 <= entry.size < 2**53
            assert len(entry.needs) <= 1000
            assert len(entry.database.encode()) <= 255
            for text in (entry.label, entry.name, *entry.needs, *entry.types, *entry.warnings):
                _check_one_line(text)
        case Attempt():
            assert _FIRST <= entry.started_at <= _LAST
            assert len(entry.database.encode()) <= 255
            _check_one_line(entry.name)
        case Unusable():
            _check_one_line(entry.message)
        case _:
            _check_one_line(entry.reason)


def _check_one_line(text: str) -> None:
    assert text.isprintable(), f"not printable: {text!a}"
    assert len(text) < 1000


TARGETS: dict[str, Callable[[], AbstractContextManager[Target]]] = {
    "page_token": page_token,
    "request": request,
    "walg": import_walg,
    "gpbackup": import_gpbackup,
}
CORPUS = Path(__file__).parent / "corpus"
