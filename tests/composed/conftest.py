"""Fixtures of the acceptance tests with containers instead of processes, which are started once for all tests."""

import os
from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.postgres.migration import Roles
from tests.composed.containers import Compose, ContainerPostgres, composed
from tests.support.catalog import TABLES
from tests.support.deployment import Deployment


@pytest.fixture(name="containers", scope="session")
async def _containers() -> AsyncIterator[tuple[Compose, Deployment]]:
    if "DOCKER_HOST" not in os.environ:
        pytest.skip("DOCKER_HOST is not set")
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
    """Return the only database, without rows."""
    connection = await asyncpg.connect(postgres.url("backups"))
    await connection.execute(f"TRUNCATE {', '.join(TABLES)}")
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
