"""ApiEndpointService, which official clients call first and without a token."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from service import pb
from service.server import Server
from tests.support.failures import failure
from tests.support.reflection import reflect
from tests.support.server import StartServer
from tests.support.tokens import AUDIENCE, ISSUER

_ADDRESS = "backups.example.com:443"


@pytest.fixture(name="endpoints")
async def _endpoints(start_server: StartServer) -> AsyncIterator[pb.ApiEndpointServiceStub]:
    async with start_server(public_address=_ADDRESS) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        yield pb.ApiEndpointServiceStub(channel)


def _all() -> list[pb.ApiEndpoint]:
    return [pb.ApiEndpoint(id="iam", address=_ADDRESS), pb.ApiEndpoint(id="managed-greenplum", address=_ADDRESS)]


async def test_list(endpoints: pb.ApiEndpointServiceStub) -> None:
    """List returns both ids that clients need with the public address, for any page size and token."""
    for request in (
        pb.ListApiEndpointsRequest(),
        pb.ListApiEndpointsRequest(page_size=1, page_token="x"),
        pb.ListApiEndpointsRequest(page_size=-1),
    ):
        assert await endpoints.List(request) == pb.ListApiEndpointsResponse(endpoints=_all())


async def test_get(endpoints: pb.ApiEndpointServiceStub) -> None:
    """Get returns an endpoint by its id; an unknown id is NOT_FOUND, and the details quote at most 128 characters of it."""
    for endpoint in _all():
        assert await endpoints.Get(pb.GetApiEndpointRequest(api_endpoint_id=endpoint.id)) == endpoint
    for unknown in ("", "compute", "IAM", "Ж" * 5_000):
        error = await failure(endpoints.Get(pb.GetApiEndpointRequest(api_endpoint_id=unknown)))
        assert (error.code, error.reason) == (StatusCode.NOT_FOUND, "API_ENDPOINT_NOT_FOUND")
        assert error.resource == ("yandex.cloud.endpoint.ApiEndpoint", unknown[:128])


async def test_without_token_keys_or_database(start_server: StartServer, tmp_path: Path) -> None:
    """Endpoints are served without a token, keys or a database, while the other services still require a token."""
    unavailable = {"database_url": "postgresql://user@127.0.0.1:1/none", "connect_timeout": "0.1", "acquire_timeout": "0.1"}
    guarded = {"auth": "jwt", "jwks": str(tmp_path / "none"), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    async with start_server(public_address=_ADDRESS, **unavailable, **guarded) as server:
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            assert not server.health.serving
            assert len((await pb.ApiEndpointServiceStub(channel).List(pb.ListApiEndpointsRequest())).endpoints) == 2
            error = await failure(pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="f")))
            assert error.code is StatusCode.UNAUTHENTICATED


async def test_overload(start_server: StartServer) -> None:
    """Calls for endpoints are admitted like others: at the admission limit they are RESOURCE_EXHAUSTED with a retry delay."""
    async with start_server(public_address=_ADDRESS, admission_limit=1) as server:
        async with grpc.aio.insecure_channel(str(server.address), options=[("grpc.enable_retries", 0)]) as channel:
            held = server.admission.admit("another", 1)
            error = await failure(pb.ApiEndpointServiceStub(channel).List(pb.ListApiEndpointsRequest()))
            assert error.code is StatusCode.RESOURCE_EXHAUSTED
            assert "grpc-retry-pushback-ms" in error.trailers
            server.admission.release("another", held)
            await pb.ApiEndpointServiceStub(channel).List(pb.ListApiEndpointsRequest())


async def test_without_a_public_address(server: Server, channel: grpc.aio.Channel) -> None:
    """Without a public address the service is UNIMPLEMENTED and not in reflection."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pb.ApiEndpointServiceStub(channel).List(pb.ListApiEndpointsRequest())
    assert caught.value.code() is StatusCode.UNIMPLEMENTED
    assert pb.API_ENDPOINT_SERVICE not in await _services(channel)


async def test_reflection(start_server: StartServer) -> None:
    """With a public address, reflection lists the service."""
    async with start_server(public_address=_ADDRESS) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        assert pb.API_ENDPOINT_SERVICE in await _services(channel)


async def _services(channel: grpc.aio.Channel) -> set[str]:
    response: Any = await reflect(channel, list_services="")
    return {service.name for service in response.list_services_response.service}
