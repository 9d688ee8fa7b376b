"""Cases that operators reported: G1 to G6, in which an unsafe cluster looks safe, and B1 to B3, in which one bad entry prevents imports.

Each case is a listing and a table of the states that it must have. A backup is named by its age in hours.
"""

import io
import json
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

import pytest

from service.cli.rules.overdue import Limits, judge
from service.entry import Listed, Selection
from service.importers import gpbackup, walg
from service.postgres.database import Database, open_database
from service.postgres.database import Limits as DatabaseLimits
from service.postgres.freshness import Freshness, freshness
from service.postgres.imports.import_backups import Options, Target, load
from tests.support.catalog import Sql
from tests.support.gpbackup_history import write_history

_NOW = datetime.now(UTC).replace(microsecond=0)
_MAX_AGE = timedelta(hours=26)

_Row: TypeAlias = dict[str, Any]


def _ago(hours: float) -> datetime:
    return _NOW - timedelta(hours=hours)


def _name(hours: float, zone: tzinfo = UTC) -> str:
    """Return gpbackup's name of a backup, a local time."""
    return f"{_ago(hours).astimezone(zone):%Y%m%d%H%M%S}"


def _gp(hours: float, zone: tzinfo = UTC, **columns: Any) -> _Row:
    return {"timestamp": _name(hours, zone), "end_time": _name(hours, zone)} | columns


def _increment(hours: float, **columns: Any) -> _Row:
    return _gp(hours, incremental=1, **columns)


def _walg(hours: float, parent: float | None = None, **changes: Any) -> _Row:
    times = {"start_time": f"{_ago(hours):%Y-%m-%dT%H:%M:%SZ}", "finish_time": f"{_ago(hours):%Y-%m-%dT%H:%M:%SZ}"}
    needs = {} if parent is None else {"increment_from": f"backup_{_ago(parent):%Y%m%dT%H%M%SZ}"}
    return {"Name": f"backup_{_ago(hours):%Y%m%dT%H%M%SZ}", "compressed_size": 1000, "is_permanent": False} | times | needs | changes


class _Gpbackup(NamedTuple):
    """A history, and the needed backups of each backup."""

    rows: list[_Row]
    plans: dict[float, list[float]] = {}  # noqa: RUF012  # never changed
    timezone: str = "Etc/UTC"
    since: float | None = None
    exclude: frozenset[str] = frozenset()

    def listed(self, folder: Path) -> Iterable[Listed]:
        plans = [(_name(hours), _name(needed)) for hours, all_needed in self.plans.items() for needed in all_needed]
        history = write_history(folder / "history.db", *self.rows, plans=plans)
        selection = Selection(None if self.since is None else _ago(self.since), self.exclude)
        return gpbackup.read(history, id_prefix="c1", timezone=self.timezone, selection=selection)


class _Walg(NamedTuple):
    """A listing of WAL-G."""

    items: list[_Row]
    since: float | None = None
    exclude: frozenset[str] = frozenset()

    def listed(self, _: Path) -> Iterable[Listed]:
        selection = Selection(None if self.since is None else _ago(self.since), self.exclude)
        return list(walg.read(io.BytesIO(json.dumps(self.items).encode()), id_prefix="c1", selection=selection))


class _State(NamedTuple):
    """The state of a database: ages of its last backups and attempts in hours, numbers, and broken rules."""

    database: str | None = ""
    last: float | None = None
    base: float | None = None
    partial: float | None = None
    size: int | None = None
    restorable: int = 0
    partials: int = 0
    broken: int = 0
    unknown: int = 0
    missing: int = 0
    failed: int | None = None
    last_failed: float | None = None
    running: float | None = None
    rules: tuple[str, ...] = ()


_NO_BACKUP = ("no-restorable-backup",)
_BERLIN = ZoneInfo("Europe/Berlin")
_NEVER = {"timestamp": "20260329023000", "end_time": "20260329033000"}
"""A row of a time that does not exist in Berlin: the host had another zone then."""

_FULL = [_walg(hours) for hours in range(30, 50)]  # so that one bad entry is less than a tenth


class _Case(NamedTuple):
    """Listings that are imported in order, and the states afterwards."""

    listings: list[_Gpbackup | _Walg]
    states: list[_State]
    chains: dict[float, str]
    """Of each backup in the catalog."""
    entries: tuple[int, int, int] = (0, 0, 0)
    """Skipped, unusable and excluded entries."""
    warnings: tuple[str, ...] = ()
    """Starts of the last import's warnings, except those about unknown sizes."""


_ONE: dict[str, Any] = {"last": 2, "base": 2, "restorable": 1}

_CASES = {
    "G1 metadata of another database": _Case(
        [_Gpbackup([_gp(504, database_name="sales"), _gp(0.5, database_name="postgres", metadata_only=1)])],
        [
            _State("postgres", partial=0.5, partials=1, failed=0, rules=_NO_BACKUP),
            _State("sales", last=504, base=504, restorable=1, failed=0, rules=("max-age",)),
        ],
        {504: "complete", 0.5: "complete"},
    ),
    "G2 a failed and a running attempt": _Case(
        [_Gpbackup([_gp(30), _gp(40, status="Failure"), _gp(3, status="Failure"), _gp(1, status="In Progress")])],
        [_State("demo", last=30, base=30, restorable=1, failed=1, last_failed=3, running=1, rules=("max-age",))],
        {30: "complete"},
        (3, 0, 0),
    ),
    "G2 a crashed attempt": _Case(
        [_Gpbackup([_gp(60), _gp(49, status="In Progress")])],
        [_State("demo", last=60, base=60, restorable=1, failed=1, last_failed=49, rules=("max-age",))],
        {60: "complete"},
        (1, 0, 0),
    ),
    "G3 gpbackup's base was deleted": _Case(
        [_Gpbackup([_gp(72, date_deleted=_name(24)), _increment(3), _increment(2)], {3: [72, 3], 2: [72, 3, 2]})],
        [_State("demo", broken=2, failed=0, rules=_NO_BACKUP)],
        {3: "broken", 2: "broken"},
        (1, 0, 0),
    ),
    "G3 a deletion of gpbackup's base has failed": _Case(
        [_Gpbackup([_gp(72, date_deleted="Local Delete Failed"), _increment(3)], {3: [72, 3]})],
        [_State("demo", last=3, base=72, restorable=2, failed=0)],
        {72: "complete", 3: "complete"},
        warnings=("still present: deletion failed (Local Delete Failed)",),
    ),
    "G3 WAL-G's base is not listed": _Case(
        [_Walg([_walg(3, parent=72), _walg(2, parent=3)])],
        [_State(broken=2, rules=_NO_BACKUP)],
        {3: "broken", 2: "broken"},
    ),
    "G3 WAL-G's listing is incomplete on purpose": _Case(
        [_Walg([_walg(72), _walg(3, parent=72)], since=24)],
        [_State(unknown=1, rules=_NO_BACKUP)],
        {3: "unknown"},
        (1, 0, 0),
    ),
    "G3 gpbackup has no row of the base": _Case(
        [_Gpbackup([_increment(3)], {3: [72, 3]})],
        [_State("demo", unknown=1, failed=0, rules=_NO_BACKUP)],
        {3: "unknown"},
    ),
    "G4 only failures": _Case(
        [_Gpbackup([_gp(26, status="Failure"), _gp(2, status="Failure")])],
        [_State("demo", failed=2, last_failed=2, rules=_NO_BACKUP)],
        {},
        (2, 0, 0),
    ),
    "G4 an empty listing": _Case([_Gpbackup([])], [_State(None, rules=_NO_BACKUP)], {}),
    "G4 everything was removed": _Case(
        [_Walg([_walg(2)]), _Walg([])],
        [_State(missing=1, rules=_NO_BACKUP)],
        {2: "missing"},
    ),
    "G5 an unknown size": _Case([_Gpbackup([_gp(2)])], [_State("demo", **_ONE, failed=0)], {2: "complete"}),
    "G5 a size of 0": _Case([_Walg([_walg(2, compressed_size=0)])], [_State(**_ONE, size=0)], {2: "complete"}),
    "G6 a backup from the future": _Case(
        [_Walg([_walg(-6)])],
        [_State(last=-6, base=-6, restorable=1, size=1000, rules=("future",))],
        {-6: "complete"},
        warnings=("dated in the future",),
    ),
    "B1 WAL-G: completed before it started": _Case(
        [_Walg([_walg(2, start_time=f"{_ago(1):%Y-%m-%dT%H:%M:%SZ}")])],
        [_State(**_ONE, size=1000)],
        {2: "complete"},
        warnings=("completed before it started",),
    ),
    "B1 gpbackup: completed before it started": _Case(
        [_Gpbackup([_gp(3), _gp(1.5, end_time=_name(2))])],
        [_State("demo", last=2, base=2, restorable=2, failed=0)],
        {3: "complete", 2: "complete"},
        warnings=("completed before it started",),
    ),
    "B2 a deleted row of a time that does not exist": _Case(
        [_Gpbackup([_NEVER | {"date_deleted": "20260501000000"}, _gp(2, _BERLIN)], timezone="Europe/Berlin")],
        [_State("demo", **_ONE, failed=0)],
        {2: "complete"},
        (1, 0, 0),
    ),
    "B2 a row of a time that does not exist, before --since": _Case(
        [_Gpbackup([_NEVER, _gp(2, _BERLIN)], timezone="Europe/Berlin", since=24)],
        [_State("demo", **_ONE, failed=0)],
        {2: "complete"},
        (1, 0, 0),
    ),
    "B2 a present backup of a time that does not exist": _Case(
        [_Gpbackup([_NEVER, *(_gp(hours, _BERLIN) for hours in range(2, 11))], timezone="Europe/Berlin")],
        [_State("demo", last=2, base=2, restorable=9, failed=0)],
        dict.fromkeys(range(2, 11), "complete"),
        (1, 1, 0),
    ),
    "B3 a bad id": _Case(
        [_Walg([_walg(2, user_data={"backup_id": "a b"}), *_FULL])],
        [_State(last=30, base=30, size=1000, restorable=20, rules=("max-age",))],
        dict.fromkeys(range(30, 50), "complete"),
        (1, 1, 0),
    ),
    "B3 a bad id, excluded": _Case(
        [_Walg([_walg(2, user_data={"backup_id": "a b"}), _walg(3)], exclude=frozenset({_walg(2)["Name"]}))],
        [_State(last=3, base=3, size=1000, restorable=1)],
        {3: "complete"},
        (1, 0, 1),
    ),
}


@pytest.fixture(name="database")
async def _database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url, DatabaseLimits(1, *(timedelta(seconds=10),) * 3)) as database:
        yield database


def _age(time: datetime | None) -> float | None:
    return None if time is None else (_NOW - time) / timedelta(hours=1)


def _state(row: Freshness) -> _State:
    return _State(
        row.database,
        last=_age(row.last_created_at),
        base=_age(row.last_base_created_at),
        partial=_age(row.last_partial_created_at),
        size=row.last_size,
        restorable=row.restorable,
        partials=row.partial,
        broken=row.broken,
        unknown=row.unknown,
        missing=row.missing,
        failed=row.failed_attempts,
        last_failed=_age(row.last_failed_started_at),
        running=_age(row.running_started_at),
        rules=tuple(each.rule for each in judge([row], datetime.now(UTC), Limits(_MAX_AGE), None)),
    )


async def _chains(sql: Sql) -> dict[float | None, str]:
    rows = await sql.fetch("SELECT created_at, CASE WHEN missing_since IS NULL THEN chain ELSE 'missing' END AS state FROM backups")
    return {_age(row["created_at"]): row["state"] for row in rows}


@pytest.mark.parametrize("case", _CASES.values(), ids=_CASES)
async def test_states(case: _Case, import_url: str, sql: Sql, database: Database, tmp_path: Path) -> None:
    """Each reported case gives exactly the states of its table, in the catalog, in freshness, and by the rules of --max-age 26h."""
    warnings: dict[str, Any] = {}
    for number, listing in enumerate(case.listings):
        (folder := tmp_path / str(number)).mkdir()
        tool = "walg" if isinstance(listing, _Walg) else "gpbackup"
        warnings = (await load(import_url, listing.listed(folder), Target("f1", "c1", tool), Options())).warnings
    assert [_state(row) for row in await freshness(database, folder_id=None, cluster_id=None)] == case.states
    assert await _chains(sql) == case.chains
    assert tuple(await sql.fetchrow("SELECT skipped, unusable, excluded FROM imports") or ()) == case.entries
    shown = [warning for warning in warnings if not warning.startswith("size unknown")]
    assert len(shown) == len(case.warnings)
    assert all(warning.startswith(start) for warning, start in zip(shown, case.warnings, strict=True))


def test_every_case_has_a_table() -> None:
    """The cases G1 to G6 and B1 to B3 have at least one table each."""
    assert {name[:2] for name in _CASES} == {*(f"G{number}" for number in range(1, 7)), *(f"B{number}" for number in range(1, 4))}
