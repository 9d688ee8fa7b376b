"""What acceptance tests share: the whole deployment."""

from collections.abc import AsyncIterator

import grpc
import pytest

from tests.acceptance.deployment import Deployment, deployed


@pytest.fixture(name="deployment")
async def _deployment(database_url: str) -> AsyncIterator[Deployment]:
    async with deployed(database_url) as deployment:
        yield deployment


@pytest.fixture(name="public")
async def _public(deployment: Deployment) -> AsyncIterator[grpc.aio.Channel]:
    async with deployment.channel() as channel:
        yield channel
