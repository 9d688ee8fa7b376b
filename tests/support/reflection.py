"""Client of gRPC's reflection service."""

from collections.abc import AsyncIterator
from typing import Any

from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc


async def reflect(channel: Any, **request: Any) -> Any:
    """Send one request, given by the fields of ServerReflectionRequest, and return its only response."""

    async def requests() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(**request)

    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    [response] = [response async for response in stub.ServerReflectionInfo(requests())]
    return response
