"""Import of a tool's listing into a cluster's rows, in one transaction, all or nothing.

The listing is in a temporary table (listing.py). A few queries find its changes, and reasons to reject it. One MERGE then
writes the rows that differ (an upsert would rewrite all of them). Chains, missing backups and freshness are derived afterwards. A dry
run does the same and rolls back.
"""

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

import asyncpg

from service.contract import CLUSTER_ID_MAX_LENGTH, FOLDER_ID_MAX_LENGTH
from service.entry import Listed
from service.errors import ImportRejected
from service.postgres.imports.chains import changed_rows, derive_chains
from service.postgres.imports.listing import Noted, Tally, check_session, copy_listing
from service.postgres.imports.record_import import Owner, move_cluster, record_import
from service.postgres.session import avoid_joins, lock_cluster, open_session, vacuum_after

# If more of a database's backups would be removed, the listing is probably incomplete: a storage was down, or there was a failover.
_PRUNE_SHARE = 0.5

ALL_FOLDERS = "*"  # in a token

_FACTS = ("created_at", "started_at", "size", "name", "method", "contents", "database", "permanent", "needs")


def _facts(table: str) -> str:
    return ", ".join(f"{table}.{column}" for column in _FACTS)


# Equal ids with equal times and size are one backup: two storages have it, or a versioned storage lists it once for each version.
_LISTED = f"""(
    SELECT DISTINCT ON (id) id, label, {_facts("listing")}
    FROM listing WHERE state = 'usable'
    ORDER BY id, permanent DESC NULLS LAST, method, needs) AS listed"""

_CONFLICT = f"""
    SELECT listed.label, listing.label AS other, id
    FROM listing
      JOIN (SELECT id FROM listing WHERE state = 'usable' GROUP BY id HAVING count(*) > 1) AS repeated USING (id)
      JOIN {_LISTED} USING (id)
    WHERE (listing.created_at, listing.started_at, listing.size, listing.name)
      IS DISTINCT FROM (listed.created_at, listed.started_at, listed.size, listed.name)
    LIMIT 1"""

_TAKEN = """
    SELECT label, id, source_cluster_id, tool, listing.name
    FROM listing JOIN backups USING (id)
    WHERE source_cluster_id <> $1 OR tool <> $2
    LIMIT 1"""

_IN_OTHER_FOLDER = """
    SELECT count(*) AS backups, min(folder_id) AS folder_id FROM backups WHERE source_cluster_id = $1 AND folder_id <> $2"""

_DIFFERS = f"({_facts('backups')}) IS DISTINCT FROM ({_facts('listed')})"

_COMPARE = f"""
    SELECT count(*) AS listed, count(backups.id) AS present, count(*) FILTER (WHERE backups.id IS NOT NULL AND {_DIFFERS}) AS changed
    FROM {_LISTED} LEFT JOIN backups USING (id)"""

_MERGE = f"""
    MERGE INTO backups USING {_LISTED} ON backups.id = listed.id
    WHEN MATCHED AND {_DIFFERS} THEN
      UPDATE SET {", ".join(f"{column} = listed.{column}" for column in _FACTS)}
    WHEN NOT MATCHED THEN
      INSERT (id, folder_id, source_cluster_id, tool, {", ".join(_FACTS)})
      VALUES (listed.id, $1, $2, $3, {_facts("listed")})"""

# Skipped entries may exist, and so may their rows.
_SKIPPED = """
    SELECT skipped.id FROM backups AS skipped JOIN listing USING (name)
    WHERE skipped.source_cluster_id = $1 AND skipped.tool = $2 AND listing.state = 'skipped'"""
_UNLISTED = """
    source_cluster_id = $1 AND tool = $2
    AND NOT EXISTS (SELECT FROM listing WHERE listing.id = backups.id AND state = 'usable')
    AND NOT EXISTS (SELECT FROM listing WHERE listing.name = backups.name AND state = 'skipped')"""

_COUNT_UNLISTED = f"""
    SELECT database, present, unlisted
    FROM (SELECT database, count(*) AS present FROM backups WHERE source_cluster_id = $1 AND tool = $2 GROUP BY database) AS stored
      JOIN (SELECT database, count(*) AS unlisted FROM backups WHERE {_UNLISTED} GROUP BY database) AS absent USING (database)
    ORDER BY database"""

_PRUNE = f"DELETE FROM backups WHERE {_UNLISTED}"
_MARK_MISSING = f"UPDATE backups SET missing_since = now() WHERE missing_since IS NULL AND {_UNLISTED}"
_MARK_PRESENT = f"""
    UPDATE backups SET missing_since = NULL
    WHERE source_cluster_id = $1 AND tool = $2 AND missing_since IS NOT NULL
      AND EXISTS (
        SELECT FROM (SELECT id FROM listing WHERE state = 'usable' UNION ALL {_SKIPPED}) AS present
        WHERE present.id = backups.id)"""

_INCOMPLETE_CHAINS = """
    SELECT chain, count(*) AS backups, min(name) AS name FROM backups
    WHERE source_cluster_id = $1 AND tool = $2 AND chain <> 'complete' AND missing_since IS NULL
    GROUP BY chain ORDER BY chain"""


class Target(NamedTuple):
    """The cluster that a listing belongs to, and the tool that made it."""

    folder_id: str
    source_cluster_id: str
    tool: str


class Options(NamedTuple):
    """Actions of an import besides adding and changing backups."""

    prune: bool = False
    """Remove the backups of this cluster and tool that the listing no longer has, up to half of each database's."""
    prune_any: bool = False
    """Remove any number of them."""
    move_folder: bool = False
    """Move the cluster's backups to the target's folder if they are in another folder."""
    dry_run: bool = False
    """Roll back."""
    ignore_databases: frozenset[str] = frozenset()
    """Databases that were dropped: they are left out of freshness."""


class Pruned(NamedTuple):
    """Backups that the listing no longer has."""

    removed: int
    rejection: str | None
    """Reason why they are not removed without --prune-any."""


class Summary(NamedTuple):
    """Numbers of backups that an import wrote, or that a dry run would write."""

    dry_run: bool
    entries: int
    """Entries of the listing. Several of them may describe the same backup."""
    added: int
    changed: int
    unchanged: int
    pruned: Pruned
    moved: int
    """Backups of the cluster that moved from another folder, including those that the listing does not have."""
    skipped: dict[str, int]
    """Entries that are not usable backups by the rules of the tool, or that the operator left out, by reason."""
    types: dict[str, int] = {}  # noqa: RUF012  # never changed
    """Usable entries by type, as the tool names it. An entry may have several types."""
    warnings: dict[str, Noted] = {}  # noqa: RUF012
    """Warnings about usable entries."""
    unusable: int = 0
    """Entries with values that the catalog cannot hold."""
    unusable_examples: tuple[str, ...] = ()
    """The first of them, each with its error."""
    missing: int = 0
    """Backups that the listing newly lacks, and that are marked as missing."""
    chains: dict[str, Noted] = {}  # noqa: RUF012
    """Backups with a chain that is broken or unknown, by that state."""

    @property
    def skipped_entries(self) -> int:
        """Number of entries that were not imported."""
        return sum(self.skipped.values()) + self.unusable

    @property
    def written(self) -> int:
        """Rows that the import wrote or removed."""
        return 0 if self.dry_run else self.added + self.changed + self.pruned.removed + self.moved + self.missing


def check_target(target: Target) -> None:
    """Check the ids of the folder and the cluster.

    Raises:
        ImportRejected: one of them is not a valid id.
    """
    for what, value, length in (
        ("folder", target.folder_id, FOLDER_ID_MAX_LENGTH),
        ("cluster", target.source_cluster_id, CLUSTER_ID_MAX_LENGTH),
    ):
        if not (1 <= len(value) <= length and value.isprintable()):
            raise ImportRejected(f"{value!a} is not an id of a {what}: 1 to {length} printable characters")
    if target.folder_id == ALL_FOLDERS:
        raise ImportRejected(f"{ALL_FOLDERS!a} is not an id of a folder: in a token, it means all folders")


async def load(url: str, listing: Iterable[Listed], target: Target, options: Options) -> Summary:
    """Make the catalog equal to the listing for a cluster and tool, and record the import.

    Raises:
        InvalidListing: the input is not a listing, or too many of its entries are unusable. As with every error, nothing is written.
        ImportRejected: an id is taken, the cluster is in another folder, or too much would be removed.
        CatalogNotWritable: the role or the server of the URL cannot write.
        CatalogUnavailable: PostgreSQL cannot be used.
    """
    async with open_session(url) as connection:
        tally = await copy_listing(connection, listing)
        async with _transaction(connection, options):
            summary = await _Import(connection, target, options, tally).run()
        await vacuum_after(connection, summary.written)
    return summary


@contextlib.asynccontextmanager
async def _transaction(connection: asyncpg.Connection, options: Options) -> AsyncIterator[None]:
    """Run the block in a transaction, and roll back after a dry run."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    except BaseException:
        await transaction.rollback()
        raise
    if options.dry_run:
        await transaction.rollback()
    else:
        await transaction.commit()


class _Import:
    """The steps of one import, within a transaction."""

    def __init__(self, connection: asyncpg.Connection, target: Target, options: Options, tally: Tally) -> None:
        self._connection = connection
        self._target = target
        self._options = options
        self._of_tool = target.source_cluster_id, target.tool
        self._tally = tally

    async def run(self) -> Summary:
        await check_session(self._connection, self._tally)
        await lock_cluster(self._connection, self._target.source_cluster_id)
        await self._check_ids()
        moved = await self._move()
        pruned = await self._prune()
        compared = await self._connection.fetchrow(_COMPARE)
        assert compared is not None
        await self._connection.execute(_MERGE, *self._target)
        await self._check_taken_ids()  # again: an import of another cluster, under another lock, may have committed since
        missing = await self._mark_missing()
        await derive_chains(self._connection, *self._of_tool)
        await self._record()
        return Summary(
            dry_run=self._options.dry_run,
            entries=self._tally.entries,
            added=compared["listed"] - compared["present"],
            changed=compared["changed"],
            unchanged=compared["present"] - compared["changed"],
            pruned=pruned,
            moved=moved,
            skipped=dict(self._tally.skipped),
            types=dict(self._tally.types),
            warnings=self._tally.warnings,
            unusable=self._tally.unusable,
            unusable_examples=tuple(self._tally.examples),
            missing=missing,
            chains=await self._incomplete_chains(),
        )

    async def _check_ids(self) -> None:
        """Check that an id names one backup, and that no id moves between clusters or tools."""
        if conflict := await self._connection.fetchrow(_CONFLICT):
            raise ImportRejected(
                f"{conflict['label']} and {conflict['other']} differ, but have the same id {conflict['id']}: "
                "leave one of them out with --exclude NAME"
            )
        await self._check_taken_ids()

    async def _check_taken_ids(self) -> None:
        cluster, tool = self._of_tool
        if taken := await self._connection.fetchrow(_TAKEN, cluster, tool):
            other = taken["source_cluster_id"]
            owner = f"cluster {other}" + (f", imported by {taken['tool']}" if taken["tool"] != tool else "")
            removal = f". If cluster {other} no longer exists, remove it: backup-service remove-cluster --cluster-id {other}"
            raise ImportRejected(
                f"{taken['label']}: the id {taken['id']} already belongs to a backup of {owner}. "
                f"Import into that cluster, use another --id-prefix, or leave the entry out with --exclude {taken['name']}"
                f"{removal if other != cluster else ''}"
            )

    async def _move(self) -> int:
        folder, cluster, _ = self._target
        other = await self._connection.fetchrow(_IN_OTHER_FOLDER, cluster, folder)
        assert other is not None
        if other["backups"] and not self._options.move_folder:
            raise ImportRejected(
                f"cluster {cluster} has {other['backups']} backups in folder {other['folder_id']}: "
                f"--move-folder moves all of them to {folder}"
            )
        await move_cluster(self._connection, cluster, folder)
        return int(other["backups"])

    async def _prune(self) -> Pruned:
        if not self._options.prune:
            return Pruned(0, rejection=None)
        async with avoid_joins(self._connection, "nestloop"):
            counts = await self._connection.fetch(_COUNT_UNLISTED, *self._of_tool)
            rejection = None if self._options.prune_any else self._prune_rejection(counts)
            if rejection and not self._options.dry_run:
                raise ImportRejected(rejection)
            return Pruned(changed_rows(await self._connection.execute(_PRUNE, *self._of_tool)), rejection)

    def _prune_rejection(self, counts: list[asyncpg.Record]) -> str | None:
        if not self._tally.entries:
            return "an empty listing removes nothing: pass --prune-any if the cluster no longer has any backups"
        for database, present, unlisted in counts:
            if unlisted > present * _PRUNE_SHARE:
                of_database = f" of database {database!a}" if database else ""
                return (
                    f"{unlisted} of this cluster's {present} backups{of_database} are not in the listing, which may be incomplete. "
                    "--dry-run shows the changes, --prune-any removes the backups"
                )
        return None

    async def _mark_missing(self) -> int:
        async with avoid_joins(self._connection, "nestloop"):
            await self._connection.execute(_MARK_PRESENT, *self._of_tool)
            return changed_rows(await self._connection.execute(_MARK_MISSING, *self._of_tool))

    async def _incomplete_chains(self) -> dict[str, Noted]:
        rows = await self._connection.fetch(_INCOMPLETE_CHAINS, *self._of_tool)
        return {row["chain"]: Noted(row["backups"], row["name"]) for row in rows}

    async def _record(self) -> None:
        folder, cluster, tool = self._target
        owner = Owner(cluster, tool, folder)
        await record_import(self._connection, owner, self._tally.counts(), ignore_databases=self._options.ignore_databases)
