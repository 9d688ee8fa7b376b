"""Chains of a backup: the backups that it needs, those that need it, and their states."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from service.entry import Deleted, Entry, Listed, Skipped
from service.postgres.database import Database, Limits, open_database
from service.postgres.imports.import_backups import Options, Target, load
from service.postgres.restore_chain import Chain, Link, restore_chain
from tests.support.catalog import Sql

_LIMITS = Limits(1, *(timedelta(seconds=10),) * 3)
_FIRST = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture(name="database")
async def _database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url, _LIMITS) as database:
        yield database


def _entry(day: int, *needs: int | str) -> Entry:
    names = tuple(each if isinstance(each, str) else f"n{each:03}" for each in needs)
    created_at = _FIRST + timedelta(days=day)
    times = (created_at, created_at - timedelta(hours=1))
    return Entry(f"entry {day}", f"n{day:03}", f"c1:{day}", *times, 1000 + day, "incremental" if needs else "base", needs=names)


async def _load(url: str, tool: str, *entries: Listed) -> None:
    await load(url, entries, Target("f1", "c1", tool), Options())


async def _chain(database: Database, backup_id: str) -> Chain:
    chain = await restore_chain(database, backup_id)
    assert chain is not None
    return chain


def _states(links: list[Link]) -> list[tuple[str | None, str]]:
    return [(link.id or link.name, link.state) for link in links]


_WALG_TREE = [_entry(1), _entry(2, 1), _entry(3, 2), _entry(4, 3), _entry(5, 2), _entry(6)]
_GPBACKUP_TREE = [_entry(1), _entry(2, 1), _entry(3, 1, 2), _entry(4, 1, 2, 3), _entry(5, 1, 2), _entry(6)]


@pytest.mark.parametrize(("tool", "entries"), [("walg", _WALG_TREE), ("gpbackup", _GPBACKUP_TREE)])
async def test_tree(import_url: str, database: Database, tool: str, entries: list[Entry]) -> None:
    """A chain has all backups that a restore needs, in its order, and all that need this one, including those on other branches."""
    await _load(import_url, tool, *entries)
    chain = await _chain(database, "c1:3")
    assert chain[1:5] == ("f1", "c1", tool, "")
    assert chain.backup[:7] == ("c1:3", "n003", *entries[2][3:5], "incremental", "everything", 1003)
    assert _states(chain.needs) == [("c1:1", "usable"), ("c1:2", "usable")]
    assert _states(chain.needed_by) == [("c1:4", "usable")]
    base = await _chain(database, "c1:1")
    assert (base.needs, sorted(each.id or "" for each in base.needed_by)) == ([], ["c1:2", "c1:3", "c1:4", "c1:5"])
    alone = await _chain(database, "c1:6")
    assert (alone.needs, alone.needed_by) == ([], [])


@pytest.mark.parametrize(
    ("tool", "before", "after", "needs", "state", "needed_by"),
    [
        ("walg", [], [_entry(2, 1), _entry(3, 2), _entry(4, 3)], [("n001", "missing"), ("c1:2", "broken")], "broken", [("c1:4", "broken")]),
        ("walg", [_entry(1)], [_entry(2, 1), _entry(3, 2)], [("c1:1", "missing"), ("c1:2", "broken")], "broken", []),
        ("walg", [_entry(3, 2)], [_entry(1), _entry(2, 1)], [("c1:1", "usable"), ("c1:2", "usable")], "missing", []),
        (
            "walg",
            [],
            [Skipped("n001", "excluded"), _entry(2, 1), _entry(3, 2)],
            [("n001", "unknown"), ("c1:2", "unknown")],
            "unknown",
            [],
        ),
        ("gpbackup", [], [Deleted("n001", "deleted"), _entry(3, 1)], [("n001", "missing")], "broken", []),
        ("gpbackup", [], [_entry(3, 1), _entry(4, 1, 3)], [("n001", "unknown")], "unknown", [("c1:4", "unknown")]),
        ("gpbackup", [_entry(1)], [_entry(3, 1, 2)], [("c1:1", "missing"), ("n002", "unknown")], "broken", []),
        ("gpbackup", [], [Deleted("n001", "deleted"), _entry(3, 1, 2)], [("n001", "unknown"), ("n002", "unknown")], "broken", []),
    ],
    ids=[
        *("never imported", "base missing", "itself missing", "excluded base"),
        *("deleted base", "no row", "missing and no row", "deleted or no row"),
    ],
)
async def test_states(
    import_url: str,
    database: Database,
    tool: str,
    before: list[Listed],
    after: list[Listed],
    needs: list[tuple[str, str]],
    state: str,
    needed_by: list[tuple[str, str]],
) -> None:
    """A needed backup without a row is missing if it alone explains a broken chain, and otherwise unknown."""
    usable = [each for each in after if isinstance(each, Entry)]
    await _load(import_url, tool, *before, *usable)
    await _load(import_url, tool, *after)
    chain = await _chain(database, "c1:3")
    assert (_states(chain.needs), chain.backup.state, _states(chain.needed_by)) == (needs, state, needed_by)
    assert [link.missing_since is not None for link in chain.needs] == [
        link.state == "missing" and link.id is not None for link in chain.needs
    ]


@pytest.mark.parametrize(
    ("entries", "needs", "needed_by"),
    [
        ([_entry(3, 3)], [], []),
        ([_entry(3, 4), _entry(4, 3)], ["c1:4"], ["c1:4"]),
        ([_entry(3, 2), _entry(2, 1), _entry(1, 2), _entry(4, 1)], ["c1:1", "c1:2"], []),
    ],
    ids=["itself", "two", "above"],
)
async def test_cycle(import_url: str, database: Database, entries: list[Entry], needs: list[str], needed_by: list[str]) -> None:
    """Each backup of a cycle is shown once, as unknown."""
    await _load(import_url, "walg", *entries)
    chain = await _chain(database, "c1:3")
    assert _states(chain.needs) == [(each, "unknown") for each in needs]
    assert _states(chain.needed_by) == [(each, "unknown") for each in needed_by]


@pytest.mark.parametrize("earlier_id", ["a:1", "z:1"])
async def test_one_name_of_two_backups(import_url: str, database: Database, earlier_id: str) -> None:
    """If a backup was imported again with another id, the listed row counts as the needed one."""
    await _load(import_url, "walg", _entry(1)._replace(id=earlier_id), _entry(2, 1))
    await _load(import_url, "walg", _entry(1), _entry(2, 1))
    chain = await _chain(database, "c1:2")
    assert (_states(chain.needs), chain.backup.state) == ([("c1:1", "usable")], "usable")
    assert _states((await _chain(database, earlier_id)).needed_by) == [("c1:2", "usable")]


async def test_owner(import_url: str, database: Database, sql: Sql) -> None:
    """Equal names of another tool and of another cluster do not belong to the chain."""
    await _load(import_url, "walg", _entry(1), _entry(2, 1))
    await _load(import_url, "gpbackup", _entry(1)._replace(id="g:1"))
    await load(import_url, [_entry(1)._replace(id="c2:1"), _entry(2, 1)._replace(id="c2:2")], Target("f2", "c2", "walg"), Options())
    assert _states((await _chain(database, "c2:2")).needs) == [("c2:1", "usable")]
    assert (await _chain(database, "g:1")).needed_by == []
    await sql.execute("UPDATE backups SET name = NULL")
    unnamed = await _chain(database, "c1:1")
    assert (unnamed.needs, unnamed.needed_by, unnamed.backup.name) == ([], [], None)


@pytest.mark.parametrize("backup_id", ["c1:9", "", "x" * 51, "a\0b", "ä", "' OR true --"])
async def test_no_backup(import_url: str, database: Database, backup_id: str) -> None:
    """An unknown id has no chain, even if no backup can have such an id."""
    await _load(import_url, "walg", _entry(1))
    assert await restore_chain(database, backup_id) is None
