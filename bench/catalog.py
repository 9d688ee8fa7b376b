"""Catalogs of a given size.

Their rows are inserted in the order of time, as imports of WAL-G insert them, so that the indexes have the same shape as in production.
"""

import asyncio
from typing import NamedTuple

import asyncpg

from service.backup import Position
from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles, migrate

DEEP_FOLDER = "b1gdeep0000000000000"
DEEP_PAGE = 100
_FOLDERS = 100
_FOLDER_ROWS = 1000  # at least, so that each folder has a page of a thousand
_CLUSTERS = 10  # of each folder
_IDS = 20_000

# Ids of folders and clusters have 20 characters. A backup's id, the cluster and WAL-G's name, has 44. The message has 127 bytes.
_FILL = """
    INSERT INTO backups (id, folder_id, created_at, source_cluster_id, started_at, size, tool)
    SELECT cluster || to_char(t AT TIME ZONE 'UTC', '":backup_"YYYYMMDD"T"HH24MISS"Z"'), folder, t, cluster,
           t - interval '17 minutes', 20000000000 + n % 1000000, 'walg'
    FROM (SELECT n, '2000-01-01Z'::timestamptz + n * interval '47 seconds' + n * 7919 % 1000000 * interval '1 microsecond' AS t,
                 coalesce($4, 'b1g' || substr(md5('folder' || n % $3), 1, 17)) AS folder,
                 'c9q' || substr(md5(coalesce($4, 'cluster') || n % ($3 * $5)), 1, 17) AS cluster
          FROM generate_series($1::bigint, $2::bigint) AS n) AS numbered"""
_FOLDER_IDS = "SELECT 'b1g' || substr(md5('folder' || n), 1, 17) FROM generate_series(0, $1 - 1) AS n"
_BEFORE_LAST_PAGE = """
    SELECT created_at, id FROM backups WHERE folder_id = $1 ORDER BY created_at DESC, id DESC OFFSET $2 LIMIT 1"""
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
    before_last_page: Position | None
    """The backup before the last page of the deep folder; None if that folder has fewer than two pages."""


def create_catalog(postgres: EmbeddedPostgres, *, backups: int, deep: int) -> Catalog:
    """Return a catalog of `backups` in several folders, and of `deep` backups in one more folder. An earlier run's catalog is used again.

    All blocks that a call can read are in memory afterwards.
    """
    return asyncio.run(_create_catalog(postgres, backups, deep))


async def _create_catalog(postgres: EmbeddedPostgres, backups: int, deep: int) -> Catalog:
    name, folders = f"bench_{backups}_{deep}", max(min(_FOLDERS, backups // _FOLDER_ROWS), 1)
    admin = await asyncpg.connect(postgres.url("postgres"))
    try:
        for role in Roles():
            if not await admin.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
                await admin.execute(f"CREATE ROLE {role} LOGIN")
        if not await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            await admin.execute("DROP DATABASE IF EXISTS bench_unfinished")
            await admin.execute("CREATE DATABASE bench_unfinished")
            await asyncio.to_thread(migrate, postgres.url("bench_unfinished"))
            await _fill(postgres.url("bench_unfinished"), backups, deep, folders)
            await admin.execute(f"ALTER DATABASE bench_unfinished RENAME TO {name}")
    finally:
        await admin.close()
    await asyncio.to_thread(migrate, postgres.url(name))  # the schema may be newer than the catalog
    return await _read(postgres.url(name), name, deep, folders)


async def _fill(url: str, backups: int, deep: int, folders: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET synchronous_commit = off")
        await connection.execute(_FILL, 0, backups - 1, folders, None, _CLUSTERS)
        await connection.execute(_FILL, backups, backups + deep - 1, 1, DEEP_FOLDER, _CLUSTERS)
        # VACUUM marks rows as visible to all only if their commit is on disk. Otherwise index-only scans would read the table.
        await connection.execute("CHECKPOINT")
        await connection.execute("VACUUM (ANALYZE) backups")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def _read(url: str, name: str, deep: int, folders: int) -> Catalog:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetchval("SELECT reltuples::bigint FROM pg_class WHERE relname = 'backups'")
        share = min(100.0, 100 * _IDS / max(rows, 1))
        ids = await connection.fetch(f"SELECT id FROM backups TABLESAMPLE BERNOULLI ({share}) LIMIT {_IDS}")
        last = await connection.fetchrow(_BEFORE_LAST_PAGE, DEEP_FOLDER, deep - DEEP_PAGE - 1) if deep >= 2 * DEEP_PAGE else None
        folder_ids = await connection.fetch(_FOLDER_IDS, folders)
        await connection.execute("SET enable_seqscan = off; SET enable_sort = off; SET max_parallel_workers_per_gather = 0")
        for query in _READ_ALL:
            await connection.execute(query)
    finally:
        await connection.close()
    return Catalog(name, [row[0] for row in folder_ids], [row[0] for row in ids], Position(*last) if last else None)
