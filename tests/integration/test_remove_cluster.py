"""Forgetting a cluster: all of it or nothing, and of no other."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from service.entry import Entry
from service.errors import CatalogNotWritable, ForgetRefused
from service.postgres.import_backups import Options, Target, load
from service.postgres.remove_cluster import Cluster, Forgotten, forget, what_goes
from service.postgres.session import lock_cluster
from tests.support.catalog import AddBackups, Sql

_TIME = datetime(2026, 11, 20, tzinfo=UTC)
_C1 = Cluster("c1", None)


async def _load(url: str, folder: str, cluster: str, tool: str, count: int) -> None:
    entries = [
        Entry(f"entry {n}", f"{cluster}-{tool}:{n}", _TIME + timedelta(days=n), _TIME + timedelta(days=n), 1) for n in range(1, count + 1)
    ]
    await load(url, entries, Target(folder, cluster, tool), Options())


async def _left(sql: Sql) -> tuple[list[str], list[str]]:
    """The clusters of which there are backups, and records of imports."""
    backups, imports = [await sql.fetch(f"SELECT source_cluster_id FROM {table} ORDER BY 1") for table in ("backups", "imports")]
    return [row[0] for row in backups], [row[0] for row in imports]


async def test_all_of_a_cluster(import_url: str, sql: Sql, add_backups: AddBackups) -> None:
    """Backups of every tool and the records of imports go, also where one is without the other; other clusters stay."""
    await _load(import_url, "f1", "c1", "walg", 3)
    await _load(import_url, "f1", "c1", "gpbackup", 0)
    await _load(import_url, "f1", "c2", "walg", 1)
    [manual] = await add_backups(1, source_cluster_id="c1", folder_id="f1")

    goes = await what_goes(import_url, _C1)
    assert goes == [
        Forgotten("f1", "gpbackup", 0, was_imported=True, last_created_at=None),
        Forgotten("f1", "manual", 1, was_imported=False, last_created_at=manual.created_at),
        Forgotten("f1", "walg", 3, was_imported=True, last_created_at=_TIME + timedelta(days=3)),
    ]
    assert len((await _left(sql))[0]) == 5

    await forget(import_url, _C1, expected=goes)
    assert await _left(sql) == (["c2"], ["c2"])


async def test_one_folder(import_url: str, sql: Sql, add_backups: AddBackups) -> None:
    """With a folder, what is in another stays."""
    await _load(import_url, "f1", "c1", "walg", 1)
    await add_backups(1, source_cluster_id="c1", folder_id="f2")
    with pytest.raises(ForgetRefused, match="the catalog has nothing of cluster c1 in folder f3"):
        await what_goes(import_url, Cluster("c1", "f3"))

    only = Cluster("c1", "f1")
    await forget(import_url, only, expected=await what_goes(import_url, only))
    assert await _left(sql) == (["c1"], [])


async def test_nothing_there(import_url: str) -> None:
    """A cluster that the catalog does not know is an error: its name may be misspelt."""
    for action in (what_goes(import_url, _C1), forget(import_url, _C1, expected=[])):
        with pytest.raises(ForgetRefused, match="the catalog has nothing of cluster c1$"):
            await action


async def test_changed_since_it_was_confirmed(import_url: str, sql: Sql) -> None:
    """What has changed since it was confirmed is not removed."""
    await _load(import_url, "f1", "c1", "walg", 1)
    goes = await what_goes(import_url, _C1)
    await _load(import_url, "f1", "c1", "walg", 2)
    with pytest.raises(ForgetRefused, match="has changed meanwhile: nothing of cluster c1 was removed"):
        await forget(import_url, _C1, expected=goes)
    assert await _left(sql) == (["c1", "c1"], ["c1"])


async def test_imports_wait(import_url: str, sql: Sql) -> None:
    """While a cluster's import goes on, its removal waits; then it finds what has changed."""
    await _load(import_url, "f1", "c1", "walg", 1)
    goes = await what_goes(import_url, _C1)
    async with sql.transaction():
        await lock_cluster(sql, "c1")
        forgetting = asyncio.ensure_future(forget(import_url, _C1, expected=goes))
        async with asyncio.timeout(20):
            while not await sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
        await sql.execute("UPDATE backups SET created_at = created_at + interval '1 day'")
    with pytest.raises(ForgetRefused, match="changed meanwhile"):
        await forgetting


async def test_the_service_cannot(import_url: str, database_url: str, sql: Sql) -> None:
    """The role that only reads is refused by PostgreSQL, which is a clear error, and nothing is removed; imports neither."""
    await _load(import_url, "f1", "c1", "walg", 1)
    with pytest.raises(CatalogNotWritable, match="may not write"):
        await forget(database_url, _C1, expected=await what_goes(database_url, _C1))
    with pytest.raises(CatalogNotWritable, match="may not write"):
        await _load(database_url, "f1", "c1", "walg", 2)
    assert await _left(sql) == (["c1"], ["c1"])
