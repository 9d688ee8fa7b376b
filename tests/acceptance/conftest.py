"""What acceptance tests share: the whole deployment, and the bars that it is held to, with their figures."""

from collections.abc import AsyncIterator

import grpc
import pytest

from tests.acceptance.bars import Figure, Report
from tests.acceptance.deployment import Deployment, deployed


@pytest.fixture(name="deployment")
async def _deployment(database_url: str) -> AsyncIterator[Deployment]:
    async with deployed(database_url) as deployment:
        yield deployment


@pytest.fixture(name="public")
async def _public(deployment: Deployment) -> AsyncIterator[grpc.aio.Channel]:
    async with deployment.channel() as channel:
        yield channel


@pytest.fixture(name="long")
def _long(request: pytest.FixtureRequest) -> bool:
    """Whether the long forms of the bars are asked for."""
    return bool(request.config.getoption("long"))


@pytest.fixture(name="figure")
def _figure(request: pytest.FixtureRequest) -> Figure:
    mark = request.node.get_closest_marker("bar")
    request.node.user_properties.append(("bar", mark.args))

    def figure(text: str) -> None:
        print(f"{request.node.name}: {text}")
        request.node.user_properties.append(("figure", text))

    return figure


def pytest_configure(config: pytest.Config) -> None:
    report = config.getoption("report")
    if report and not hasattr(config, "workerinput"):  # a worker of xdist
        config.pluginmanager.register(Report(report))
