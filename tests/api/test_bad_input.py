"""Generated requests: every response has a status of the contract, and never INTERNAL or UNKNOWN."""

from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service import pb
from service.backup import Position
from service.page_token import PageTokens
from service.server import Server
from tests.support.page_tokens import folder_scope

_METHODS = [f"/{pb.BACKUP_SERVICE}/Get", f"/{pb.BACKUP_SERVICE}/List", f"/{pb.CLUSTER_SERVICE}/ListBackups"]
_EXPECTED = {StatusCode.OK, StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND}
_settings = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Every code point that protobuf can encode, with more of those that cause errors in other programs.
_texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\0\x01\x7f\n\r%\\'\"🐘\ufeff\uffff\u202e"), max_size=120)


async def _code(call: grpc.aio.UnaryUnaryCall) -> StatusCode:  # type: ignore[type-arg]
    return await call.code()


@given(st.sampled_from(_METHODS), st.binary(max_size=200))
@_settings
async def test_random_bytes(channel: Any, method: str, data: bytes) -> None:
    """A request of random bytes has an expected status."""
    assert await _code(channel.unary_unary(method)(data)) in _EXPECTED


@given(st.sampled_from(_METHODS), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), st.data())
@_settings
async def test_damaged_messages(channel: Any, method: str, text: str, data: st.DataObject) -> None:
    """A request that is truncated, or has one changed byte, has an expected status."""
    whole = bytearray(pb.ListBackupsRequest(folder_id=text, page_size=len(text), page_token=text).SerializeToString())
    whole = whole[: data.draw(st.integers(0, len(whole)))]
    if whole:
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert await _code(channel.unary_unary(method)(bytes(whole))) in _EXPECTED


@given(folder_id=_texts, page_size=st.integers(-(2**63), 2**63 - 1), page_token=_texts)
@example(folder_id="f1\0", page_size=1, page_token="")
@example(folder_id="f", page_size=2**63 - 1, page_token="")
@example(folder_id="f", page_size=-(2**63), page_token="\0")
@_settings
async def test_any_fields_of_list(stub: pb.BackupServiceStub, folder_id: str, page_size: int, page_token: str) -> None:
    """List returns an expected status for any texts and any page size."""
    request = pb.ListBackupsRequest(folder_id=folder_id, page_size=page_size, page_token=page_token)
    assert await _code(stub.List(request)) in _EXPECTED


@given(cluster_id=_texts, page_size=st.integers(-(2**63), 2**63 - 1), page_token=_texts)
@example(cluster_id="c1\0", page_size=1, page_token="")
@_settings
async def test_any_fields_of_list_backups(channel: Any, cluster_id: str, page_size: int, page_token: str) -> None:
    """ListBackups returns an expected status for any texts and any page size."""
    request = pb.ListClusterBackupsRequest(cluster_id=cluster_id, page_size=page_size, page_token=page_token)
    assert await _code(pb.ClusterServiceStub(channel).ListBackups(request)) in _EXPECTED


@given(_texts)
@_settings
async def test_any_id(stub: pb.BackupServiceStub, backup_id: str) -> None:
    """Get of any unknown id is NOT_FOUND, and of an empty one INVALID_ARGUMENT."""
    expected = StatusCode.NOT_FOUND if backup_id else StatusCode.INVALID_ARGUMENT
    assert await _code(stub.Get(pb.GetBackupRequest(backup_id=backup_id))) is expected


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("size", [16 * 1024, 1_000_000])
async def test_requests_over_16_kib(server: Server, size: int, compression: grpc.Compression) -> None:
    """A request over 16 KiB is RESOURCE_EXHAUSTED by every method, compressed or not."""
    request = pb.GetBackupRequest(backup_id="x" * size).SerializeToString()  # with its tag and length more than 16 KiB
    async with grpc.aio.insecure_channel(str(server.address), compression=compression) as channel:
        for method in (*_METHODS, "/grpc.health.v1.Health/Check"):
            call: Any = channel.unary_unary(method)
            assert await _code(call(request)) is StatusCode.RESOURCE_EXHAUSTED


async def test_the_largest_request(stub: pb.BackupServiceStub) -> None:
    """A request of exactly 16 KiB is answered by the service."""
    request = pb.GetBackupRequest(backup_id="x" * (16 * 1024 - 3))
    assert request.ByteSize() == 16 * 1024
    assert await _code(stub.Get(request)) is StatusCode.NOT_FOUND


@given(st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_page_tokens_with_any_bit_flipped(stub: pb.BackupServiceStub, data: st.DataObject) -> None:
    """A page token with a single bit flipped is INVALID_ARGUMENT."""
    token = bytearray(PageTokens().seal(Position(datetime(2026, 11, 20, tzinfo=UTC), "backup-1"), folder_scope("f1")), "ascii")
    token[data.draw(st.integers(0, len(token) - 1))] ^= 1 << data.draw(st.integers(0, 6))
    request = pb.ListBackupsRequest(folder_id="f1", page_token=token.decode())
    assert await _code(stub.List(request)) is StatusCode.INVALID_ARGUMENT
