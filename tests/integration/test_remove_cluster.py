"""Removal of a cluster: complete or not at all, and of no other cluster."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from service.entry import Entry
from service.errors import CatalogNotWritable, RemovalRejected
from service.postgres.imports.import_backups import Options, Target, load
from service.postgres.remove_cluster import Cluster, Removal, removal_preview, remove_cluster
from service.postgres.session import lock_cluster
from tests.support.catalog import AddBackups, Sql
from tests.support.eventually import eventually

_TIME = datetime(2026, 11, 20, tzinfo=UTC)
_C1 = Cluster("c1", None)


async def _load(url: str, folder: str, cluster: str, tool: str, count: int) -> None:
    entries = [
        Entry(f"entry {n}", f"n{n}", f"{cluster}-{tool}:{n}", _TIME + timedelta(days=n), _TIME + timedelta(days=n), 1)
        for n in range(1, count + 1)
    ]
    await load(url, entries, Target(folder, cluster, tool), Options())


async def _remaining(sql: Sql) -> tuple[list[str], list[str]]:
    """Return the cluster of each backup, and of each record of an import."""
    backups, imports = [await sql.fetch(f"SELECT source_cluster_id FROM {table} ORDER BY 1") for table in ("backups", "imports")]
    return [row[0] for row in backups], [row[0] for row in imports]


async def test_removes_all_of_a_cluster(import_url: str, sql: Sql, add_backups: AddBackups) -> None:
    """Backups of every tool and records of imports are removed, even if only one of them exists. Other clusters keep theirs."""
    await _load(import_url, "f1", "c1", "walg", 3)
    await _load(import_url, "f1", "c1", "gpbackup", 0)
    await _load(import_url, "f1", "c2", "walg", 1)
    [manual] = await add_backups(1, source_cluster_id="c1", folder_id="f1")

    preview = await removal_preview(import_url, _C1)
    assert preview == [
        Removal("f1", "gpbackup", 0, was_imported=True, last_created_at=None),
        Removal("f1", "manual", 1, was_imported=False, last_created_at=manual.created_at),
        Removal("f1", "walg", 3, was_imported=True, last_created_at=_TIME + timedelta(days=3)),
    ]
    assert len((await _remaining(sql))[0]) == 5

    await remove_cluster(import_url, _C1, expected=preview)
    assert await _remaining(sql) == (["c2"], ["c2"])


async def test_one_folder(import_url: str, sql: Sql, add_backups: AddBackups) -> None:
    """With a folder, the cluster's rows in other folders stay."""
    await _load(import_url, "f1", "c1", "walg", 1)
    await add_backups(1, source_cluster_id="c1", folder_id="f2")
    with pytest.raises(RemovalRejected, match="the catalog has no rows of cluster c1 in folder f3"):
        await removal_preview(import_url, Cluster("c1", "f3"))

    only = Cluster("c1", "f1")
    await remove_cluster(import_url, only, expected=await removal_preview(import_url, only))
    assert await _remaining(sql) == (["c1"], [])


async def test_unknown_cluster(import_url: str) -> None:
    """A cluster that is not in the catalog is an error, because its name may be misspelt."""
    for action in (removal_preview(import_url, _C1), remove_cluster(import_url, _C1, expected=[])):
        with pytest.raises(RemovalRejected, match="the catalog has no rows of cluster c1$"):
            await action


async def test_changed_after_the_preview(import_url: str, sql: Sql) -> None:
    """Nothing is removed if the cluster's rows changed after the preview."""
    await _load(import_url, "f1", "c1", "walg", 1)
    preview = await removal_preview(import_url, _C1)
    await _load(import_url, "f1", "c1", "walg", 2)
    with pytest.raises(RemovalRejected, match="nothing was removed: the catalog's rows of cluster c1 changed after the preview"):
        await remove_cluster(import_url, _C1, expected=preview)
    assert await _remaining(sql) == (["c1", "c1"], ["c1"])


async def test_waits_for_imports(import_url: str, sql: Sql) -> None:
    """A removal waits for an import of the same cluster, and then sees its changes."""
    await _load(import_url, "f1", "c1", "walg", 1)
    preview = await removal_preview(import_url, _C1)
    async with sql.transaction():
        await lock_cluster(sql, "c1")
        removing = asyncio.ensure_future(remove_cluster(import_url, _C1, expected=preview))
        await eventually(lambda: sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"), 1, timeout_s=20)
        await sql.execute("UPDATE backups SET created_at = created_at + interval '1 day'")
    with pytest.raises(RemovalRejected, match="changed after the preview"):
        await removing


async def test_role_without_write_access(import_url: str, database_url: str, sql: Sql) -> None:
    """With a role that can only read, removals and imports are clear errors and change nothing."""
    await _load(import_url, "f1", "c1", "walg", 1)
    with pytest.raises(CatalogNotWritable, match="may not write"):
        await remove_cluster(database_url, _C1, expected=await removal_preview(database_url, _C1))
    with pytest.raises(CatalogNotWritable, match="may not write"):
        await _load(database_url, "f1", "c1", "walg", 2)
    assert await _remaining(sql) == (["c1"], ["c1"])
