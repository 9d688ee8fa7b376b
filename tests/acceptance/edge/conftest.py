"""One deployment for all tests of a module, whose catalog is emptied before each test: to start one takes seconds."""

from collections.abc import AsyncIterator

import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles
from tests.support.catalog import TABLES, Sql
from tests.support.deployment import Deployment, ReplicaProcess, deployed


@pytest.fixture(name="running", scope="module")
async def _running(postgres: EmbeddedPostgres, module_database: str) -> AsyncIterator[Deployment]:
    async with deployed(postgres.url(module_database, user=Roles().service)) as running:
        yield running


@pytest.fixture(name="database_name")
async def _database_name(module_sql: Sql, module_database: str) -> str:
    """Return the name of the database that the tests of a module share, without rows."""
    await module_sql.execute(f"TRUNCATE {', '.join(TABLES)}")
    return module_database


@pytest.fixture(name="deployment")
async def _deployment(running: Deployment, database_name: str) -> Deployment:
    for replica in running.replicas:
        if isinstance(replica, ReplicaProcess) and replica.status is not None:  # the previous test has stopped it
            await replica.start()
    await running.until_healthy(len(running.replicas))
    await running.settled()
    return running
