"""Read model of a backup's chain: the backups that a restore of it requires, and the backups that require it.

No index leads from a name to its row, and a query for each link would read the rows of the cluster each time. Therefore the parents of
WAL-G are read once and followed in memory, about 0.4 kB for each backup of the cluster. gpbackup records all needed backups.
"""

from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias

from service.backup import TIME_MAX, is_backup_id
from service.postgres.database import Database

State: TypeAlias = Literal["usable", "missing", "broken", "unknown"]
"""Usable: the tool lists the backup and all that it needs. Missing: the tool no longer lists it. Broken: something that it needs is
missing. Unknown: it, or something that it needs, was left out of the catalog."""

# Rows of a query.
_LINKS_PAGE, _PARENTS_PAGE = 1000, 10_000

_STATE = "CASE WHEN missing_since IS NOT NULL THEN 'missing' WHEN chain = 'complete' THEN 'usable' ELSE chain END"
_ROW = f"id, name, created_at, started_at, method, contents, size, {_STATE} AS state, missing_since"

_BACKUP = f"SELECT {_ROW}, folder_id, source_cluster_id, tool, database, chain, needs FROM backups WHERE id = $1"
_LINKS = f"SELECT {_ROW} FROM backups WHERE id = ANY ($1::text[])"

_OF_CLUSTER = "source_cluster_id = $1 AND tool = $2"
_NAMED = f"""
    SELECT DISTINCT ON (name) name, id FROM backups
    WHERE {_OF_CLUSTER} AND name = ANY ($3::text[])
    ORDER BY name, missing_since NULLS FIRST, id"""
_NEEDING = f"SELECT id FROM backups WHERE {_OF_CLUSTER} AND needs @> ARRAY[$3::text] ORDER BY created_at, id"

# In the order of the index backups_cluster.
_PARENTS = f"""
    SELECT created_at, missing_since IS NOT NULL, id, name, needs[1] FROM backups
    WHERE {_OF_CLUSTER} AND created_at <= $3 AND (created_at < $3 OR id > $4)
    ORDER BY created_at DESC, id
    LIMIT {_PARENTS_PAGE}"""


class Link(NamedTuple):
    """A backup of a chain. Unknown facts are None. If the catalog has no row of the backup, only its name is known."""

    id: str | None
    name: str | None
    """The tool's own name."""
    created_at: datetime | None
    """When the backup was completed."""
    started_at: datetime | None
    method: Literal["base", "incremental"] | None
    contents: Literal["everything", "metadata only", "data only", "filtered"] | None
    size: int | None
    """Bytes."""
    state: State
    missing_since: datetime | None


class Chain(NamedTuple):
    """A backup with the backups that it needs and those that need it, directly or indirectly."""

    backup: Link
    folder_id: str
    source_cluster_id: str
    tool: str
    database: str
    """Empty for a backup of the whole cluster."""
    needs: list[Link]
    """In the order of a restore."""
    needed_by: list[Link]


class _Parent(NamedTuple):
    """A backup of a tool that records direct parents."""

    is_missing: bool
    id: str
    parent: str | None
    """Name of the backup that it needs."""


class _Ids(NamedTuple):
    """Ids of the other backups of a chain."""

    needs: dict[str, str | None]
    """Names to ids, in the order of a restore. The id is None if the catalog has no row with the name."""
    needed_by: list[str]


_Owner: TypeAlias = tuple[str, str]  # cluster and tool


async def restore_chain(database: Database, backup_id: str) -> Chain | None:
    """Return the chain of a backup; None if the catalog has no such backup.

    Raises:
        CatalogUnavailable: see `Database.fetch`.
    """
    rows = await database.fetch(_BACKUP, backup_id) if is_backup_id(backup_id) else []
    if not rows:
        return None
    *facts, folder_id, cluster_id, tool, of_database, chain, needs = rows[0]
    backup = Link(*facts)
    find = _ids_by_plan if tool == "gpbackup" else _ids_by_parents
    ids = await find(database, (cluster_id, tool), backup.name, needs)
    links = await _links(database, [id_ for id_ in ids.needs.values() if id_] + ids.needed_by)
    needed = [links.get(id_ or "") or _absent(name) for name, id_ in ids.needs.items()]
    if chain == "broken":
        _mark_cause(needed)
    needed_by = [links[each] for each in ids.needed_by if each in links]
    return Chain(backup, folder_id, cluster_id, tool, of_database, needed, needed_by)


async def _ids_by_plan(database: Database, owner: _Owner, name: str | None, needs: list[str]) -> _Ids:
    """Return the chain of a backup by gpbackup, which records all needed backups. Names are times, so their order is that of a restore."""
    ids = dict(map(tuple, await database.fetch(_NAMED, *owner, needs) if needs else []))
    needing = await database.fetch(_NEEDING, *owner, name) if name else []
    return _Ids({each: ids.get(each) for each in sorted(needs)}, [row[0] for row in needing])


async def _ids_by_parents(database: Database, owner: _Owner, name: str | None, needs: list[str]) -> _Ids:
    """Return the chain of a backup whose tool records direct parents."""
    parents = await _parents(database, owner)
    needed: dict[str, str | None] = {}
    each = needs[0] if needs else None
    while each is not None and each != name and each not in needed:  # in a cycle, a name occurs again
        found = parents.get(each)
        needed[each], each = (found.id, found.parent) if found else (None, None)
    return _Ids(dict(reversed(needed.items())), _descendants(parents, name))


async def _parents(database: Database, owner: _Owner) -> dict[str, _Parent]:
    """Return the backups of a cluster and tool by name, newest first.

    If several rows have a name, a listed one with the first id counts, as in chains.py.
    """
    parents: dict[str, _Parent] = {}
    after: tuple[object, ...] = (TIME_MAX, "")
    while page := await database.fetch(_PARENTS, *owner, *after):
        for _, is_missing, id_, name, parent in page:
            if name is not None and (name not in parents or (is_missing, id_) < parents[name][:2]):
                parents[name] = _Parent(is_missing, id_, parent)
        after = (page[-1][0], page[-1][2])
    return parents


def _descendants(parents: dict[str, _Parent], name: str | None) -> list[str]:
    """Return the ids of the backups that need a backup: first the direct ones, oldest first."""
    children: dict[str, list[str]] = {}
    for child in reversed(parents):
        if (parent := parents[child].parent) is not None:
            children.setdefault(parent, []).append(child)
    reached = dict.fromkeys([name] if name else [])
    queue = list(reached)
    for each in queue:
        for child in children.get(each, []):
            if child not in reached:
                reached[child] = None
                queue.append(child)
    return [parents[each].id for each in queue[1:]]


async def _links(database: Database, ids: list[str]) -> dict[str, Link]:
    links: dict[str, Link] = {}
    for start in range(0, len(ids), _LINKS_PAGE):
        for row in await database.fetch(_LINKS, ids[start : start + _LINKS_PAGE]):
            links[row[0]] = Link(*row)
    return links


def _absent(name: str) -> Link:
    return Link(None, name, None, None, None, None, None, "unknown", None)


def _mark_cause(needed: list[Link]) -> None:
    """Mark the absent backup of a broken chain as missing, if it must have broken the chain: the import does not record which one did."""
    absent = [number for number, link in enumerate(needed) if link.id is None]
    if len(absent) == 1 and all(link.state != "missing" for link in needed):
        needed[absent[0]] = needed[absent[0]]._replace(state="missing")
