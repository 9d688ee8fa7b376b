"""Locks of clusters: writes of one cluster wait for each other, and none runs without its lock."""

import asyncio

import pytest

from service.errors import CatalogUnavailable
from service.postgres.session import lock_cluster, open_session
from tests.support.catalog import Sql
from tests.support.eventually import eventually


async def test_one_cluster(import_url: str, sql: Sql) -> None:
    """A second write of a cluster waits until the transaction of the first one ends; a write of another cluster does not wait."""
    async with open_session(import_url) as first, open_session(import_url) as second, first.transaction(), second.transaction():
        await lock_cluster(first, "c1")
        async with asyncio.timeout(10):
            await lock_cluster(second, "c2")
        waiting = asyncio.ensure_future(lock_cluster(second, "c1"))
        await eventually(lambda: sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"), 1)
        assert not waiting.done()
        await first.execute("ROLLBACK")
        await waiting
        await first.execute("BEGIN")


async def test_every_id_has_a_lock(import_url: str) -> None:
    """There is a lock for any id of a cluster."""
    async with open_session(import_url) as connection, connection.transaction():
        for number in range(2000):
            await lock_cluster(connection, f"кластер-{number}")


async def test_missing_lock(import_url: str, sql: Sql) -> None:
    """A write is rejected if the row of its lock is missing."""
    await sql.execute("DELETE FROM cluster_locks")
    with pytest.raises(CatalogUnavailable, match="rows of the table cluster_locks are missing: it must have the numbers 0 to 255"):
        async with open_session(import_url) as connection, connection.transaction():
            await lock_cluster(connection, "c1")
