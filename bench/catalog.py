"""Catalogs of a given size.

Their rows are inserted in the order of time, as imports of WAL-G insert them, so that the indexes have the same shape as in production.
"""

import asyncio
from datetime import datetime
from typing import NamedTuple

import asyncpg
from rich.progress import Progress

from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles, migrate

DEEP_FOLDER = "b1gdeep"
_CLUSTERS = 10  # of each folder
_CHUNK = 50_000  # rows

# Ids of folders and clusters have 20 characters. A backup's id, the cluster and WAL-G's name, has 44. The message has 127 bytes.
_FILL = """
    INSERT INTO backups (id, folder_id, created_at, source_cluster_id, started_at, size, tool)
    SELECT cluster || to_char(t AT TIME ZONE 'UTC', '":backup_"YYYYMMDD"T"HH24MISS"Z"'), folder, t, cluster,
           t - interval '17 minutes', 20000000000 + n % 1000000, 'walg'
    FROM (SELECT n, '2000-01-01Z'::timestamptz + n * interval '47 seconds' + n * 7919 % 1000000 * interval '1 microsecond' AS t,
                 coalesce($4, 'b1g' || substr(md5('folder' || n % $3), 1, 17)) AS folder,
                 'c9q' || substr(md5(coalesce($4, 'cluster') || n % ($3 * $5)), 1, 17) AS cluster
          FROM generate_series($1::bigint, $2::bigint) AS n) AS numbered"""

# Skip from one folder to the next in the index, because DISTINCT would read all of it.
_FOLDERS = """
    WITH RECURSIVE found AS (
      (SELECT folder_id FROM backups ORDER BY folder_id LIMIT 1)
      UNION ALL
      SELECT (SELECT folder_id FROM backups WHERE folder_id > found.folder_id ORDER BY folder_id LIMIT 1)
      FROM found WHERE found.folder_id IS NOT NULL)
    SELECT folder_id FROM found WHERE folder_id <> $1"""

_READ_ALL = (
    "SELECT sum(length(wire)) FROM (SELECT wire FROM backups ORDER BY folder_id, created_at DESC, id DESC OFFSET 0) AS read",
    "SELECT sum(size) FROM (SELECT size FROM backups ORDER BY id OFFSET 0) AS read",
)


class Catalog(NamedTuple):
    """A filled database."""

    name: str
    folders: list[str]
    ids: list[str]
    """Ids of about 20,000 random backups."""
    depth: int
    """Number of pages of 100 in the deep folder."""
    deepest: tuple[datetime, str] | None
    """`created_at` and id of the row before the last page; None if the deep folder has fewer than two pages."""


def create_catalog(postgres: EmbeddedPostgres, *, backups: int, folders: int, deep: int, progress: Progress) -> Catalog:
    """Return a catalog of `backups` in `folders`, and of `deep` backups in one more folder. The catalog of an earlier run is used again."""
    return asyncio.run(_create_catalog(postgres, backups, folders, deep, progress))


async def _create_catalog(postgres: EmbeddedPostgres, backups: int, folders: int, deep: int, progress: Progress) -> Catalog:
    name = f"bench_{backups}_{folders}_{deep}"
    admin = await asyncpg.connect(postgres.url("postgres"))
    try:
        for role in Roles():
            if not await admin.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
                await admin.execute(f"CREATE ROLE {role} LOGIN")
        if not await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            await admin.execute("DROP DATABASE IF EXISTS bench_unfinished")
            await admin.execute("CREATE DATABASE bench_unfinished")
            await asyncio.to_thread(migrate, postgres.url("bench_unfinished"))
            await _fill(postgres.url("bench_unfinished"), backups, folders, deep, progress)
            await admin.execute(f"ALTER DATABASE bench_unfinished RENAME TO {name}")
    finally:
        await admin.close()
    return await _describe(postgres.url(name), name, deep)


async def _fill(url: str, backups: int, folders: int, deep: int, progress: Progress) -> None:
    connection = await asyncpg.connect(url)
    task = progress.add_task("Loading backups", total=backups + deep)
    try:
        await connection.execute("SET synchronous_commit = off")
        for first, last, of_folders, folder in ((0, backups, folders, None), (backups, backups + deep, 1, DEEP_FOLDER)):
            for start in range(first, last, _CHUNK):
                end = min(start + _CHUNK, last)
                await connection.execute(_FILL, start, end - 1, of_folders, folder, _CLUSTERS)
                progress.update(task, completed=end)
        # VACUUM marks rows as visible to all only if their commit is on disk. Otherwise index-only scans would read the table.
        await connection.execute("CHECKPOINT")
        await connection.execute("VACUUM (ANALYZE) backups")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def _describe(url: str, name: str, deep: int) -> Catalog:
    connection = await asyncpg.connect(url)
    try:
        folders = [row[0] for row in await connection.fetch(_FOLDERS, DEEP_FOLDER)]
        rows = await connection.fetchval("SELECT reltuples::bigint FROM pg_class WHERE relname = 'backups'")
        share = min(100.0, 100 * 20_000 / max(rows, 1))
        ids = [row[0] for row in await connection.fetch(f"SELECT id FROM backups TABLESAMPLE BERNOULLI ({share}) LIMIT 20000")]
        deepest = None
        if deep >= 200:
            deepest = await connection.fetchrow(
                "SELECT created_at, id FROM backups WHERE folder_id = $1 ORDER BY created_at DESC, id DESC OFFSET $2 LIMIT 1",
                DEEP_FOLDER, deep - 101,
            )  # fmt: skip
        return Catalog(name, folders, ids, deep // 100, (deepest[0], deepest[1]) if deepest else None)
    finally:
        await connection.close()


async def _read_all(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET enable_seqscan = off; SET enable_sort = off; SET max_parallel_workers_per_gather = 0")
        for query in _READ_ALL:
            await connection.execute(query)
    finally:
        await connection.close()


def warm(url: str) -> None:
    """Read every block of a catalog that a call can read."""
    asyncio.run(_read_all(url))
