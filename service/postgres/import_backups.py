"""What an import writes: a tool's listing becomes a cluster's rows, in one transaction, all or nothing.

The listing is copied into a temporary table; a few queries find what it would add, change and remove, and what forbids it;
one MERGE then leaves unchanged rows alone (an upsert would rewrite all of them).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import asyncpg

from service.entry import Entry, Skipped
from service.errors import ImportRefused
from service.postgres.session import lock_cluster, open_session, vacuum_after

# Removing more than this share of a cluster's rows is rather a listing that is not whole: a storage that was down, a failover.
_PRUNE_SHARE = 0.5

ALL_FOLDERS = "*"  # in a token

_ID_MAX_LENGTH = 50  # of folders and clusters, in any characters

_LISTING = """
    CREATE TEMPORARY TABLE listing (
      entry text, id text COLLATE "C", created_at timestamptz, started_at timestamptz, size bigint
    ) ON COMMIT DROP"""

_SAME_ID = """
    SELECT DISTINCT ON (created_at, started_at, size) id, entry FROM listing
    WHERE id = (SELECT id FROM listing GROUP BY id
                HAVING (min(created_at), min(started_at), min(size)) <> (max(created_at), max(started_at), max(size)) LIMIT 1)"""

_FOREIGN_ID = """
    SELECT listing.entry, id, source_cluster_id, tool
    FROM listing JOIN backups USING (id)
    WHERE source_cluster_id <> $1 OR tool <> $2
    LIMIT 1"""

_IN_OTHER_FOLDER = """
    SELECT count(*) AS backups, min(folder_id) AS folder_id FROM backups WHERE source_cluster_id = $1 AND folder_id <> $2"""

_MOVE = "UPDATE backups SET folder_id = $2 WHERE source_cluster_id = $1 AND folder_id <> $2"
_MOVE_IMPORTS = "UPDATE imports SET folder_id = $2 WHERE source_cluster_id = $1 AND folder_id <> $2"

_LISTED = "(SELECT DISTINCT ON (id) id, created_at, started_at, size FROM listing ORDER BY id) AS listed"
_DIFFERS = "(backups.created_at, backups.started_at, backups.size) <> (listed.created_at, listed.started_at, listed.size)"

_COMPARE = f"""
    SELECT count(*) AS listed, count(backups.id) AS present, count(*) FILTER (WHERE {_DIFFERS}) AS changed
    FROM {_LISTED} LEFT JOIN backups USING (id)"""

_MERGE = f"""
    MERGE INTO backups USING {_LISTED} ON backups.id = listed.id
    WHEN MATCHED AND {_DIFFERS} THEN
      UPDATE SET created_at = listed.created_at, started_at = listed.started_at, size = listed.size
    WHEN NOT MATCHED THEN
      INSERT (id, folder_id, created_at, source_cluster_id, started_at, size, tool)
      VALUES (listed.id, $1, listed.created_at, $2, listed.started_at, listed.size, $3)"""

_UNLISTED = "source_cluster_id = $1 AND tool = $2 AND NOT EXISTS (SELECT FROM listing WHERE listing.id = backups.id)"

_COUNT = f"""
    SELECT count(*) AS present, count(*) FILTER (WHERE {_UNLISTED}) AS unlisted
    FROM backups WHERE source_cluster_id = $1 AND tool = $2"""

_PRUNE = f"DELETE FROM backups WHERE {_UNLISTED}"

_RECORD = """
    INSERT INTO imports (source_cluster_id, tool, folder_id, imported_at, entries, skipped, backups, last_backup_id, last_created_at)
    SELECT $1, $2, $3, now(), $4, $5, count(*), (array_agg(id ORDER BY created_at DESC, id DESC))[1], max(created_at)
    FROM backups WHERE source_cluster_id = $1 AND tool = $2
    ON CONFLICT (source_cluster_id, tool) DO UPDATE SET
      folder_id = excluded.folder_id, imported_at = excluded.imported_at, entries = excluded.entries, skipped = excluded.skipped,
      backups = excluded.backups, last_backup_id = excluded.last_backup_id, last_created_at = excluded.last_created_at"""


class Target(NamedTuple):
    """Whose listing it is."""

    folder_id: str
    source_cluster_id: str
    tool: str


class Options(NamedTuple):
    """What an import may do besides adding and changing backups."""

    prune: bool = False
    """Remove the backups of this cluster and tool that the listing no longer has, up to half of them."""
    prune_any: bool = False
    """Remove them however many they are."""
    move_folder: bool = False
    """Move the cluster's backups here if they are in another folder."""
    dry_run: bool = False
    """Write nothing."""


class Pruned(NamedTuple):
    """Backups which the listing no longer has."""

    removed: int
    refusal: str | None
    """Why they are not removed without --prune-any."""


class Noted(NamedTuple):
    """Where a warning applies."""

    entries: int
    example: str


class Summary(NamedTuple):
    """What an import did, or, as a dry run, would do; numbers of backups."""

    dry_run: bool
    entries: int
    """Of the listing; several may be one backup."""
    added: int
    changed: int
    unchanged: int
    pruned: Pruned
    moved: int
    """From another folder, with their cluster, whether the listing has them or not."""
    skipped: dict[str, int]
    """Entries by the reason why they are no usable backups."""
    kinds: dict[str, int] = {}  # noqa: RUF012  # never changed
    """Usable entries by what the tool calls them; one may be of several kinds."""
    warnings: dict[str, Noted] = {}  # noqa: RUF012
    """What to know of usable entries."""

    @property
    def written(self) -> int:
        """Rows that the import wrote or removed."""
        return 0 if self.dry_run else self.added + self.changed + self.pruned.removed + self.moved


def check_target(target: Target) -> None:
    """Check the ids of the folder and the cluster.

    Raises:
        ImportRefused: One of them cannot be an id.
    """
    for what, value in (("folder", target.folder_id), ("cluster", target.source_cluster_id)):
        if not (1 <= len(value) <= _ID_MAX_LENGTH and value.isprintable()):
            raise ImportRefused(f"{value!a} is not an id of a {what}: 1 to {_ID_MAX_LENGTH} printable characters")
    if target.folder_id == ALL_FOLDERS:
        raise ImportRefused(f"{ALL_FOLDERS!a} is not an id of a folder: in a token, it means all folders")


async def load(url: str, listing: Iterable[Entry | Skipped], target: Target, options: Options) -> Summary:
    """Makes the catalog say of a cluster and tool what the listing says, and records the import.

    Raises:
        InvalidListing: the listing is not one, or an entry cannot be a backup; nothing is written, as with every other error.
        ImportRefused: an id is taken, the cluster is in another folder, or too much would be removed.
        CatalogUnavailable: PostgreSQL is gone, going or too slow.
    """
    async with open_session(url) as connection:
        async with connection.transaction():
            summary = await _Import(connection, target, options).run(listing)
        await vacuum_after(connection, summary.written)
    return summary


class _Import:
    """The steps of one import, within a transaction."""

    def __init__(self, connection: asyncpg.Connection, target: Target, options: Options) -> None:
        self._connection = connection
        self._target = target
        self._options = options
        self._entries = 0
        self._skipped: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._warnings: dict[str, Noted] = {}

    async def run(self, listing: Iterable[Entry | Skipped]) -> Summary:
        await self._copy(listing)
        await lock_cluster(self._connection, self._target.source_cluster_id)
        await self._refuse_ids()
        moved = await self._move()
        pruned = await self._prune()
        compared = await self._connection.fetchrow(_COMPARE)
        assert compared is not None
        if not self._options.dry_run:
            await self._write()
        return Summary(
            dry_run=self._options.dry_run,
            entries=self._entries,
            added=compared["listed"] - compared["present"],
            changed=compared["changed"],
            unchanged=compared["present"] - compared["changed"],
            pruned=pruned,
            moved=moved,
            skipped=dict(self._skipped),
            kinds=dict(self._kinds),
            warnings=self._warnings,
        )

    async def _copy(self, listing: Iterable[Entry | Skipped]) -> None:
        await self._connection.execute(_LISTING)
        await self._connection.copy_records_to_table("listing", records=self._records(listing))
        await self._connection.execute("ANALYZE listing")

    def _records(self, listing: Iterable[Entry | Skipped]) -> Iterator[tuple[object, ...]]:
        for self._entries, entry in enumerate(listing, start=1):
            if isinstance(entry, Skipped):
                self._skipped[entry.reason] += 1
            else:
                self._note(entry)
                yield entry.label, entry.id, entry.created_at, entry.started_at, entry.size

    def _note(self, entry: Entry) -> None:
        for kind in entry.kinds:
            self._kinds[kind] += 1
        for warning in entry.warnings:
            entries, example = self._warnings.get(warning, (0, entry.label))
            self._warnings[warning] = Noted(entries + 1, example)

    async def _refuse_ids(self) -> None:
        """An id names one backup, and never moves between clusters or tools."""
        if same := await self._connection.fetch(_SAME_ID):
            raise ImportRefused(f"{same[0]['entry']} and {same[1]['entry']} differ, but would both take the id {same[0]['id']}")
        await self._refuse_foreign_ids()

    async def _refuse_foreign_ids(self) -> None:
        _, cluster, tool = self._target
        if taken := await self._connection.fetchrow(_FOREIGN_ID, cluster, tool):
            owner = f"cluster {taken['source_cluster_id']}" + (f", imported by {taken['tool']}" if taken["tool"] != tool else "")
            raise ImportRefused(f"{taken['entry']}: the id {taken['id']} already belongs to a backup of {owner}")

    async def _move(self) -> int:
        folder, cluster, _ = self._target
        other = await self._connection.fetchrow(_IN_OTHER_FOLDER, cluster, folder)
        assert other is not None
        if other["backups"] and not self._options.move_folder:
            raise ImportRefused(
                f"cluster {cluster} has {other['backups']} backups in folder {other['folder_id']}: "
                f"--move-folder moves all of them to {folder}"
            )
        if not self._options.dry_run:
            await self._connection.execute(_MOVE, cluster, folder)
            await self._connection.execute(_MOVE_IMPORTS, cluster, folder)
        return int(other["backups"])

    async def _prune(self) -> Pruned:
        if not self._options.prune:
            return Pruned(0, refusal=None)
        _, *of_tool = self._target
        count = await self._connection.fetchrow(_COUNT, *of_tool)
        assert count is not None
        pruned = Pruned(count["unlisted"], self._prune_refusal(present=count["present"], unlisted=count["unlisted"]))
        if self._options.dry_run:
            return pruned
        if pruned.refusal:
            raise ImportRefused(pruned.refusal)
        await self._connection.execute(_PRUNE, *of_tool)
        return pruned

    def _prune_refusal(self, *, present: int, unlisted: int) -> str | None:
        if self._options.prune_any:
            return None
        if not self._entries:
            return "an empty listing removes nothing: --prune-any, if the cluster really has no backups any more"
        if unlisted > present * _PRUNE_SHARE:
            return (
                f"{unlisted} of this cluster's {present} backups are not in the listing; is it whole? "
                "--dry-run shows what would happen, --prune-any removes them"
            )
        return None

    async def _write(self) -> None:
        await self._connection.execute(_MERGE, *self._target)
        await self._refuse_foreign_ids()  # again: another cluster's import, under another lock, may have ended meanwhile
        folder, cluster, tool = self._target
        await self._connection.execute(_RECORD, cluster, tool, folder, self._entries, self._skipped.total())
