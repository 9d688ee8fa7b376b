"""Records of an import, written in its transaction: the import itself, the tool's attempts, and the freshness of each database.

A freshness row stays when the last backup of its database is removed, so that alerts on it keep firing. `import --ignore-database` removes
the row of a database that was dropped.
"""

from typing import NamedTuple

import asyncpg

from service.postgres.freshness import RUNNING_MAX

# For each database. A report shows half a year of daily runs.
_ATTEMPTS_MAX = 200

_RECORD_IMPORT = """
    INSERT INTO imports (source_cluster_id, tool, folder_id, imported_at, entries, skipped, unusable, excluded)
    VALUES ($1, $2, $3, now(), $4, $5, $6, $7)
    ON CONFLICT (source_cluster_id, tool) DO UPDATE SET
      folder_id = excluded.folder_id, imported_at = excluded.imported_at, entries = excluded.entries, skipped = excluded.skipped,
      unusable = excluded.unusable, excluded = excluded.excluded"""

_NEWEST_ATTEMPTS = f"""
    SELECT database, name, started_at,
      CASE WHEN attempt = 'running' AND started_at <= now() - interval '{RUNNING_MAX.days} days' THEN 'crashed' ELSE attempt END
    FROM (
      SELECT DISTINCT ON (database, name) database, name, started_at, attempt,
        dense_rank() OVER (PARTITION BY database ORDER BY name DESC) AS rank
      FROM listing WHERE state = 'attempt') AS ranked
    WHERE rank <= {_ATTEMPTS_MAX}"""

_DROP_ATTEMPTS = f"""
    DELETE FROM attempts
    WHERE source_cluster_id = $1 AND tool = $2 AND (database, name) NOT IN (SELECT database, name FROM ({_NEWEST_ATTEMPTS}) AS newest)"""

_ADD_ATTEMPTS = f"""
    INSERT INTO attempts (source_cluster_id, tool, folder_id, database, name, started_at, state)
    SELECT $1, $2, $3, * FROM ({_NEWEST_ATTEMPTS}) AS newest
    ON CONFLICT (source_cluster_id, tool, database, name) DO UPDATE SET started_at = excluded.started_at, state = excluded.state
    WHERE (attempts.started_at, attempts.state) <> (excluded.started_at, excluded.state)"""

_OF_CLUSTER = "source_cluster_id = $1 AND tool = $2"
_RESTORABLE = "contents = 'everything' AND chain = 'complete' AND missing_since IS NULL"


def _last_backup_query(condition: str) -> str:
    """Return the query for the last backup of each database that meets a condition."""
    return f"""
      SELECT DISTINCT ON (database) database, id, created_at FROM backups
      WHERE {_OF_CLUSTER} AND {condition}
      ORDER BY database, created_at DESC, id DESC"""


# Columns of `freshness` that an import computes, and their values: `counts`, `last` and others are subqueries of `_RECORD_FRESHNESS`.
_FRESHNESS = {
    "backups": "coalesce(counts.backups, 0)",
    "restorable": "coalesce(counts.restorable, 0)",
    "partial": "coalesce(counts.partial, 0)",
    "broken": "coalesce(counts.broken, 0)",
    "unknown": "coalesce(counts.unknown, 0)",
    "missing": "coalesce(counts.missing, 0)",
    "last_backup_id": "last.id",
    "last_created_at": "last.created_at",
    "last_base_id": "base.id",
    "last_base_created_at": "base.created_at",
    "last_partial_id": "partial.id",
    "last_partial_created_at": "partial.created_at",
    "failed_attempts": "CASE WHEN $4 THEN coalesce(failed.attempts, 0) END",
    "last_failed_name": "failed.name",
    "last_failed_started_at": "failed.started_at",
    "running_name": "running.name",
    "running_started_at": "running.started_at",
}

_RECORD_FRESHNESS = f"""
    WITH counts AS (
      SELECT database, count(*) AS backups, count(*) FILTER (WHERE {_RESTORABLE}) AS restorable,
        count(*) FILTER (WHERE contents <> 'everything') AS partial, count(*) FILTER (WHERE chain = 'broken') AS broken,
        count(*) FILTER (WHERE chain = 'unknown') AS unknown, count(missing_since) AS missing
      FROM backups WHERE {_OF_CLUSTER} GROUP BY database),
    last AS ({_last_backup_query(_RESTORABLE)}),
    base AS ({_last_backup_query(f"method = 'base' AND {_RESTORABLE}")}),
    partial AS ({_last_backup_query("contents <> 'everything' AND missing_since IS NULL")}),
    failed AS (
      SELECT database, count(*) AS attempts, max(name) AS name, max(started_at) AS started_at
      FROM attempts LEFT JOIN last USING (database)
      WHERE {_OF_CLUSTER} AND state <> 'running' AND (last.created_at IS NULL OR started_at > last.created_at)
      GROUP BY database),
    running AS (
      SELECT database, max(name) AS name, max(started_at) AS started_at
      FROM attempts WHERE {_OF_CLUSTER} AND state = 'running' GROUP BY database),
    databases AS (
      SELECT database FROM counts
      UNION SELECT database FROM attempts WHERE {_OF_CLUSTER}
      UNION SELECT database FROM freshness WHERE {_OF_CLUSTER}
      UNION SELECT '' WHERE NOT $4)
    INSERT INTO freshness (source_cluster_id, tool, folder_id, database, {", ".join(_FRESHNESS)})
    SELECT $1, $2, $3, database, {", ".join(_FRESHNESS.values())}
    FROM databases
      LEFT JOIN counts USING (database) LEFT JOIN last USING (database) LEFT JOIN base USING (database)
      LEFT JOIN partial USING (database) LEFT JOIN failed USING (database) LEFT JOIN running USING (database)
    WHERE database <> ALL ($5::text[])
    ON CONFLICT (source_cluster_id, tool, database) DO UPDATE SET {", ".join(f"{column} = excluded.{column}" for column in _FRESHNESS)}
    WHERE ({", ".join(f"freshness.{column}" for column in _FRESHNESS)})
      IS DISTINCT FROM ({", ".join(f"excluded.{column}" for column in _FRESHNESS)})"""

_IGNORE = f"DELETE FROM freshness WHERE {_OF_CLUSTER} AND database = ANY ($3::text[])"

_MOVE = tuple(
    f"UPDATE {table} SET folder_id = $2 WHERE source_cluster_id = $1 AND folder_id <> $2"
    for table in ("backups", "imports", "attempts", "freshness")
)


class Owner(NamedTuple):
    """The cluster and tool of an import, in the order of the queries' arguments."""

    cluster_id: str
    tool: str
    folder_id: str


class Counts(NamedTuple):
    """Numbers of a listing's entries."""

    entries: int
    skipped: int
    """Including unusable and excluded ones."""
    unusable: int
    excluded: int


async def record_import(connection: asyncpg.Connection, owner: Owner, counts: Counts, *, ignore_databases: frozenset[str]) -> None:
    """Write the records of an import. Rows that would not change are not written, except the import's own."""
    records_attempts = owner.tool == "gpbackup"
    if records_attempts:
        await connection.execute(_DROP_ATTEMPTS, owner.cluster_id, owner.tool)
        await connection.execute(_ADD_ATTEMPTS, *owner)
    await connection.execute(_IGNORE, owner.cluster_id, owner.tool, list(ignore_databases))
    await connection.execute(_RECORD_FRESHNESS, *owner, records_attempts, list(ignore_databases))
    await connection.execute(_RECORD_IMPORT, *owner, *counts)


async def move_cluster(connection: asyncpg.Connection, cluster_id: str, folder_id: str) -> None:
    """Move all rows of a cluster, of every tool, to a folder."""
    for statement in _MOVE:
        await connection.execute(statement, cluster_id, folder_id)
