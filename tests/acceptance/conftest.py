"""Fixtures of the acceptance tests: the deployment, and the measurements of its guarantees."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles, migrate
from tests.support.deployment import Deployment, deployed
from tests.support.guarantees import Report
from tests.support.postgres import run_postgres


@pytest.fixture(name="deployment")
async def _deployment(database_url: str) -> AsyncIterator[Deployment]:
    async with deployed(database_url) as deployment:
        yield deployment


@pytest.fixture(name="own_postgres")
async def _own_postgres() -> AsyncIterator[EmbeddedPostgres]:
    """Yield a PostgreSQL with roles and schema that the test may stop. Acknowledged transactions survive a crash."""
    with run_postgres({"shared_buffers": "128MB"}) as postgres:
        sql = await asyncpg.connect(postgres.url("postgres"))
        await sql.execute("; ".join(f"CREATE ROLE {role} LOGIN" for role in Roles()))
        await sql.close()
        await asyncio.to_thread(migrate, postgres.url("postgres"), roles=Roles())
        yield postgres


def pytest_configure(config: pytest.Config) -> None:
    report = config.getoption("report")
    if report and not hasattr(config, "workerinput"):  # not in a worker of xdist
        config.pluginmanager.register(Report(report))
