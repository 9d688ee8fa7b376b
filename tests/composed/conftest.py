"""The fixtures of the acceptance tests, with containers in place of processes; started once for all of the tests."""

import os
from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.postgres.migration import Roles
from tests.acceptance.conftest import _long, _measure, _public  # noqa: F401  # fixtures
from tests.composed.containers import Compose, composed
from tests.support.deployment import Deployment


class ContainerPostgres:
    """Address and passwords of the composed PostgreSQL."""

    def __init__(self, port: int, passwords: dict[str, str]) -> None:
        self._port, self._passwords = port, passwords

    def url(self, database: str, *, user: str = "backups_owner") -> str:
        return f"postgresql://{user}:{self._passwords[user]}@127.0.0.1:{self._port}/{database}?sslmode=require"


@pytest.fixture(name="containers", scope="session")
async def _containers() -> AsyncIterator[tuple[Compose, Deployment]]:
    if "DOCKER_HOST" not in os.environ:
        pytest.skip("DOCKER_HOST names no engine")
    async with composed() as running:
        yield running


@pytest.fixture(name="compose")
def _compose(containers: tuple[Compose, Deployment]) -> Compose:
    return containers[0]


@pytest.fixture(name="postgres", scope="session")
async def _postgres(containers: tuple[Compose, Deployment]) -> ContainerPostgres:
    compose, _ = containers
    return ContainerPostgres(compose.postgres_port, await compose.passwords())


@pytest.fixture(name="database_name")
async def _database_name(postgres: ContainerPostgres) -> str:
    """The one database, emptied."""
    connection = await asyncpg.connect(postgres.url("backups"))
    await connection.execute("TRUNCATE backups, imports")
    await connection.close()
    return "backups"


@pytest.fixture(name="database_url")
def _database_url(postgres: ContainerPostgres, database_name: str) -> str:
    return postgres.url(database_name, user=Roles().service)


@pytest.fixture(name="deployment")
async def _deployment(containers: tuple[Compose, Deployment], database_name: str) -> Deployment:
    _, deployment = containers
    await deployment.until_healthy(len(deployment.replicas))
    await deployment.settled()
    return deployment
