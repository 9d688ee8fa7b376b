"""Fixtures of the acceptance tests: the deployment, and the measurements of its guarantees."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import grpc
import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles, migrate
from tests.support.deployment import Deployment, deployed
from tests.support.guarantees import Measure, Report
from tests.support.postgres import run_postgres


@pytest.fixture(name="deployment")
async def _deployment(database_url: str) -> AsyncIterator[Deployment]:
    async with deployed(database_url) as deployment:
        yield deployment


@pytest.fixture(name="public")
async def _public(deployment: Deployment) -> AsyncIterator[grpc.aio.Channel]:
    async with deployment.channel() as channel:
        yield channel


@pytest.fixture(name="own_postgres")
async def _own_postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A PostgreSQL with roles and schema that the test may stop; acknowledged transactions survive a crash."""
    with run_postgres({"shared_buffers": "128MB"}) as postgres:
        sql = await asyncpg.connect(postgres.url("postgres"))
        await sql.execute("; ".join(f"CREATE ROLE {role} LOGIN" for role in Roles()))
        await sql.close()
        await asyncio.to_thread(migrate, postgres.url("postgres"), roles=Roles())
        yield postgres


@pytest.fixture(name="long")
def _long(request: pytest.FixtureRequest) -> bool:
    """True if the long forms of the fault tests run."""
    return bool(request.config.getoption("long"))


@pytest.fixture(name="measure")
def _measure(request: pytest.FixtureRequest) -> Measure:
    """Function that prints a measurement and adds it to the report."""
    mark = request.node.get_closest_marker("guarantee")
    request.node.user_properties.append(("guarantee", mark.args))

    def measure(text: str) -> None:
        print(f"{request.node.name}: {text}")
        request.node.user_properties.append(("measurement", text))

    return measure


def pytest_configure(config: pytest.Config) -> None:
    report = config.getoption("report")
    if report and not hasattr(config, "workerinput"):  # not in a worker of xdist
        config.pluginmanager.register(Report(report))
