"""Chains of backups: their state, which depends on the backups that a restore requires.

The rules differ by tool, because WAL-G lists only what exists, and gpbackup's history also has rows of deleted backups:

| state of a needed backup | walg | gpbackup |
| --- | --- | --- |
| usable in the listing | present | present |
| deleted, or being deleted, by the listing | - | broken |
| in the listing, but skipped or unusable | unknown | unknown |
| not in the listing, and marked as missing in the catalog | broken | broken |
| not in the listing otherwise | broken | unknown |

An increment without recorded needs is unknown. For WAL-G, `needs` is the direct parent, and the state is inherited along the chain. For
gpbackup, `needs` are all needed backups.

Everything is derived in SQL from the temporary table `listing` (import_backups.py) and the cluster's rows, and a row is written only if its
state changes. Memory is bounded by work_mem.
"""

import asyncpg

from service.postgres.session import avoid_joins

_HAS_NO_PLAN = "method = 'incremental' AND contents <> 'metadata only' AND needs = '{}'"

_LINKS = """
    CREATE TEMPORARY TABLE links (name text COLLATE "C" PRIMARY KEY, parent text COLLATE "C", own_state text) ON COMMIT DROP"""
_LINK_STATES = """
    CREATE TEMPORARY TABLE link_states (name text COLLATE "C", chain text) ON COMMIT DROP"""

# `own_state` is NULL if the parent is a usable increment: its state is inherited.
_FILL_LINKS = f"""
    INSERT INTO links
    WITH increments AS MATERIALIZED (
      SELECT DISTINCT ON (name) name, needs[1] AS parent
      FROM backups
      WHERE source_cluster_id = $1 AND tool = $2 AND name IS NOT NULL AND (needs <> '{{}}' OR {_HAS_NO_PLAN})
      ORDER BY name, missing_since NULLS FIRST, id),
    listed AS (SELECT name, bool_or(state = 'usable') AS is_usable FROM listing WHERE name IS NOT NULL GROUP BY name)
    SELECT increments.name, increments.parent, CASE
      WHEN increments.parent IS NULL THEN 'unknown'
      WHEN listed.name IS NULL THEN 'broken'
      WHEN NOT is_usable THEN 'unknown'
      WHEN parents.name IS NULL THEN 'complete' END
    FROM increments
      LEFT JOIN listed ON listed.name = increments.parent
      LEFT JOIN increments AS parents ON parents.name = increments.parent"""

# Each link has one parent, so that it is reached at most once. Links of a cycle are never reached.
_FOLLOW_LINKS = """
    INSERT INTO link_states
    WITH RECURSIVE reached AS (
      SELECT name, own_state AS chain FROM links WHERE own_state IS NOT NULL
      UNION ALL
      SELECT links.name, reached.chain FROM reached JOIN links ON links.parent = reached.name WHERE own_state IS NULL)
    SELECT name, chain FROM reached"""

_WALG = """
    UPDATE backups SET chain = derived.chain
    FROM (
      SELECT id, CASE WHEN links.name IS NULL THEN 'complete' ELSE coalesce(link_states.chain, 'unknown') END AS chain
      FROM backups LEFT JOIN links USING (name) LEFT JOIN link_states USING (name)
      WHERE source_cluster_id = $1 AND tool = $2) AS derived
    WHERE backups.id = derived.id AND source_cluster_id = $1 AND tool = $2 AND backups.chain <> derived.chain"""

_GPBACKUP = f"""
    WITH listed AS (
      SELECT name, bool_or(state = 'usable') AS is_usable, bool_or(state = 'deleted') AS is_deleted
      FROM listing WHERE name IS NOT NULL GROUP BY name),
    missing AS (
      SELECT DISTINCT name FROM backups WHERE source_cluster_id = $1 AND tool = $2 AND missing_since IS NOT NULL),
    needed AS (
      SELECT id, bool_or(CASE WHEN listed.name IS NULL THEN missing.name IS NOT NULL ELSE is_deleted AND NOT is_usable END) AS is_broken,
        bool_or(is_usable IS NOT TRUE) AS is_incomplete
      FROM backups CROSS JOIN LATERAL unnest(needs) AS needed_name
        LEFT JOIN listed ON listed.name = needed_name LEFT JOIN missing ON missing.name = needed_name
      WHERE source_cluster_id = $1 AND tool = $2
      GROUP BY id)
    UPDATE backups SET chain = derived.chain
    FROM (
      SELECT id, CASE WHEN is_broken THEN 'broken' WHEN is_incomplete OR ({_HAS_NO_PLAN}) THEN 'unknown' ELSE 'complete' END AS chain
      FROM backups LEFT JOIN needed USING (id)
      WHERE source_cluster_id = $1 AND tool = $2) AS derived
    WHERE backups.id = derived.id AND source_cluster_id = $1 AND tool = $2 AND backups.chain <> derived.chain"""


async def derive_chains(connection: asyncpg.Connection, cluster_id: str, tool: str) -> int:
    """Update the chain of every backup of a cluster and tool, within the transaction of an import. Return the number of changed rows."""
    if tool == "gpbackup":
        derive = _GPBACKUP
    else:
        derive = _WALG
        await _follow_links(connection, cluster_id, tool)
    async with avoid_joins(connection, "nestloop"):
        return changed_rows(await connection.execute(derive, cluster_id, tool))


async def _follow_links(connection: asyncpg.Connection, cluster_id: str, tool: str) -> None:
    await connection.execute(_LINKS)
    await connection.execute(_LINK_STATES)
    async with avoid_joins(connection, "nestloop"):
        await connection.execute(_FILL_LINKS, cluster_id, tool)
    await connection.execute("CREATE INDEX ON links (parent); ANALYZE links")
    async with avoid_joins(connection, "hashjoin", "mergejoin"):  # they would read all links again at each step of a long chain
        await connection.execute(_FOLLOW_LINKS)
    await connection.execute("ANALYZE link_states")


def changed_rows(status: str) -> int:
    """Return the number of rows in a command's status, such as `UPDATE 3`."""
    return int(status.rsplit(" ", 1)[-1])
