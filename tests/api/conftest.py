"""Fixtures for servers that require tokens."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import pb
from tests.support.eventually import eventually
from tests.support.server import StartGuarded, StartGuardedChannel, StartServer
from tests.support.tokens import AUDIENCE, ISSUER, Issuer, Source


@pytest.fixture(name="issuer", scope="session")
def _issuer() -> Issuer:
    return Issuer("k1", "k2")


@pytest.fixture(name="jwks")
def _jwks(issuer: Issuer, tmp_path: Path) -> Path:
    """Return a JWKS file with the key `k1`."""
    file = tmp_path / "jwks.json"
    file.write_bytes(issuer.jwks("k1"))
    return file


@pytest.fixture(name="source")
def _source() -> Iterator[Source]:
    """Yield an HTTP server for JWKS documents."""
    with contextlib.closing(Source()) as source:
        yield source


@pytest.fixture(name="guarded_channel")
def _guarded_channel(start_server: StartServer) -> StartGuardedChannel:
    """Start a server that requires tokens, and wait until it has read its keys."""

    @contextlib.asynccontextmanager
    async def start(jwks: Any, *, wait: bool = True, **settings: Any) -> AsyncIterator[grpc.aio.Channel]:
        settings = {"auth": "jwt", "jwks": str(jwks), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE} | settings
        async with start_server(**settings) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
            if wait:
                await eventually(lambda: _health(channel), health_pb2.HealthCheckResponse.SERVING)
            yield channel

    return start


@pytest.fixture(name="guarded")
def _guarded(guarded_channel: StartGuardedChannel) -> StartGuarded:
    """Start a server that requires tokens, and wait until it has read its keys."""

    @contextlib.asynccontextmanager
    async def start(jwks: Any, **settings: Any) -> AsyncIterator[pb.BackupServiceStub]:
        async with guarded_channel(jwks, **settings) as channel:
            yield pb.BackupServiceStub(channel)

    return start


async def _health(channel: grpc.aio.Channel) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest())).status)
