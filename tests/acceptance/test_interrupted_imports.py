"""Imports that are killed, lose their connection or have no disk space, at every step.

Mitigation: one transaction, which also writes the record of the import, and one lock for each cluster. Without the transaction, an import
that is killed after its MERGE leaves backups that are missing in its record.
"""

import asyncio
import contextlib
import io
import itertools
import os
import random
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self
from unittest.mock import ANY
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from service.errors import CatalogUnavailable
from service.importers import walg
from service.postgres.imports.import_backups import Options, Target, load
from service.postgres.migration import Roles, migrate
from tests.support.catalog import Sql
from tests.support.eventually import eventually
from tests.support.guarantees import Measure
from tests.support.importing import FIRST_DAY, Importing, listing
from tests.support.proxy import listening

# Enough that each step takes some time, and that VACUUM runs afterwards.
_BACKUPS = 1200

State = tuple[tuple[Any, ...], ...]
"""All backups, and all records of imports without their times."""

_STATE = """
    SELECT id, folder_id, created_at, source_cluster_id, started_at, size, tool FROM backups ORDER BY id"""
_RECORDS = """
    SELECT imports.source_cluster_id, tool, imports.folder_id, entries, skipped, freshness.folder_id, backups, restorable, last_backup_id,
      last_created_at
    FROM imports JOIN freshness USING (source_cluster_id, tool) ORDER BY 1, 2"""


_OLD = dict.fromkeys(range(_BACKUPS), 1000)
# A third is removed, a third is unchanged, a third is changed, and as many are new.
_NEW = {day: 1000 if day < 2 * _BACKUPS // 3 else 2000 for day in range(_BACKUPS // 3, 4 * _BACKUPS // 3)}
_LISTED = listing(_NEW)
_OPTIONS = ("--prune", "--move-folder")
_TARGET = Target("f1", "c1", walg.TOOL)
_RUNNING_IMPORTS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'backup-service import'"
_NEVER = 1 << 60
_DISK_MB = 200


async def _imported(url: str, log: Path, listing: bytes, *options: str, folder: str = "f1") -> tuple[int, str]:
    importing = Importing(url, log, *options, folder=folder)
    await importing.write(listing)
    return await importing.wait(), importing.printed()


async def _state(sql: Sql) -> State:
    async with sql.transaction(isolation="repeatable_read", readonly=True):
        rows = [*await sql.fetch(_STATE), *await sql.fetch(_RECORDS)]
    return tuple(tuple(row) for row in rows)


async def _load(url: str, sizes: dict[int, int], *, prune: bool = True) -> None:
    await load(url, walg.read(io.BytesIO(listing(sizes)), id_prefix="c1"), _TARGET, Options(prune=prune))


async def _outcome(url: str) -> str:
    """Import, and return the outcome that the caller sees."""
    try:
        await _load(url, _NEW)
    except CatalogUnavailable:
        return "failed"
    return "imported"


class Catalog:
    """A catalog that must be in one of two states after an import: the old or the new one."""

    def __init__(self, sql: Sql, url: str, new: State) -> None:
        self.sql, self.url, self._new = sql, url, new
        self._old: State = ()

    @classmethod
    async def before(cls, sql: Sql, url: str, *, folder: str = "f1") -> Self:
        """Return a catalog in the old state, with its backups in this folder. The new state is recorded first."""
        await sql.execute("TRUNCATE backups, imports, freshness")
        await _load(url, _OLD)
        await _load(url, _NEW)
        if folder != "f1":
            for table in ("backups", "imports", "freshness"):
                await sql.execute(f"UPDATE {table} SET folder_id = '{folder}'")
        return await cls(sql, url, await _state(sql)).restore()

    async def restore(self) -> Self:
        """Put the catalog into the old state, and return it."""
        await self.sql.execute("TRUNCATE backups, imports, freshness")
        await _load(self.url, _OLD, prune=False)
        self._old = await _state(self.sql)
        return self

    async def state(self) -> str:
        """Wait until no import runs, and return `old` or `new`, the state of the catalog."""
        await eventually(lambda: self.sql.fetchval(f"SELECT count(*) {_RUNNING_IMPORTS}"), 0, timeout_s=30)
        state = await _state(self.sql)
        assert state in (self._old, self._new)
        return "new" if state == self._new else "old"

    async def until(self, query: str) -> None:
        """Wait until an import runs a query that matches a LIKE pattern."""
        running = f"SELECT count(*) {_RUNNING_IMPORTS} AND query LIKE $1"
        await eventually(lambda: self.sql.fetchval(running, query), bool, timeout_s=30, period_s=0.005)


class Step(NamedTuple):
    """A step of an import, and the state of the catalog if the import is killed there."""

    query: str
    """LIKE pattern of the step's query."""
    lock: str = ""
    """Query by which another session makes the step wait."""
    folder: str = "f1"
    state: str = "old"


_STEPS = {
    "reading": Step("COMMIT%"),
    "lock": Step("%FROM cluster_locks%", "SELECT FROM cluster_locks FOR UPDATE"),
    "ids": Step("%FROM listing JOIN backups%", "LOCK TABLE backups"),
    "move": Step("UPDATE backups %", "SELECT FROM backups LIMIT 1 FOR UPDATE", folder="f2"),
    "move of the record": Step("UPDATE imports %", "SELECT FROM imports FOR UPDATE", folder="f2"),
    "move of freshness": Step("UPDATE freshness %", "SELECT FROM freshness FOR UPDATE", folder="f2"),
    "prune": Step("%DELETE FROM backups%", "SELECT FROM backups ORDER BY created_at LIMIT 1 FOR UPDATE"),
    "merge": Step("%MERGE INTO backups%", "SELECT FROM backups ORDER BY created_at DESC LIMIT 1 FOR UPDATE"),
    "freshness": Step("%WITH counts AS%", "SELECT FROM freshness FOR UPDATE"),  # pg_stat_activity cuts the query before its INSERT
    "record": Step("%INSERT INTO imports%", "SELECT FROM imports FOR UPDATE"),
    "vacuum": Step("VACUUM %", "LOCK TABLE backups IN SHARE UPDATE EXCLUSIVE MODE", state="new"),
}


@pytest.mark.slow
@pytest.mark.guarantee(15, "an import killed (kill -9), and its connection cut, at each of its steps")
async def test_ended_at_every_step(
    postgres: EmbeddedPostgres, database_name: str, import_url: str, sql: Sql, tmp_path: Path, *, long: bool, measure: Measure
) -> None:
    """The catalog has the old state until the commit, and then the new one; in the long form, the next import makes it the new one."""
    states: dict[str, str] = {}
    catalogs = {folder: await Catalog.before(sql, import_url, folder=folder) for folder in ("f1", "f2")}
    for (name, step), ending in itertools.product(_STEPS.items(), ("killed", "cut off") if long else ("killed",)):
        catalog = await catalogs[step.folder].restore()
        holder = await asyncpg.connect(postgres.url(database_name))
        async with holder.transaction():
            if step.lock:
                await holder.execute(step.lock)
            importing = Importing(import_url, tmp_path / "log", *_OPTIONS, folder=step.folder)
            await importing.write(_LISTED[: len(_LISTED) if step.lock else len(_LISTED) // 2], close=bool(step.lock))
            await catalog.until(step.query)
            if ending == "killed":
                importing.kill()
            else:
                await sql.execute(f"SELECT pg_terminate_backend(pid) {_RUNNING_IMPORTS}")
                if not step.lock:
                    await importing.write(_LISTED[len(_LISTED) // 2 :])
            status = await importing.wait()
        await holder.close()
        states[f"{name}, {ending}"] = await catalog.state()
        assert states[f"{name}, {ending}"] == step.state, name
        assert ending == "killed" or (status == (1 if step.state == "old" else 0) and "Traceback" not in importing.printed())
        if long:
            assert await _imported(import_url, tmp_path / "log", _LISTED, *_OPTIONS, folder=step.folder) == (0, ANY)
            assert await catalog.state() == "new"
    measure(", ".join(f"{name}: {state}" for name, state in states.items()))


async def test_no_snapshot_while_the_tool_lists(import_url: str, sql: Sql, tmp_path: Path) -> None:
    """An import that waits for the rest of its listing has no transaction open, so that VACUUM is not held back."""
    importing = Importing(import_url, tmp_path / "log")
    await importing.write(_LISTED[: len(_LISTED) // 2], close=False)
    session = f"SELECT state, backend_xid, backend_xmin {_RUNNING_IMPORTS} AND query LIKE 'COMMIT%'"
    await eventually(lambda: sql.fetch(session), [("idle", None, None)])
    await importing.write(_LISTED[len(_LISTED) // 2 :])
    assert await importing.wait() == 0
    assert importing.printed().startswith(f"Imported cluster c1 into folder f1: {len(_NEW)} added, ")


@pytest.mark.guarantee(15, "an import killed (kill -9) at any time")
async def test_killed_at_any_time(import_url: str, sql: Sql, tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """An import that is killed at any time leaves the catalog in the old or the new state."""
    catalog = await Catalog.before(sql, import_url)
    states: Counter[str] = Counter()
    for number in range(100 if long else 4):
        importing = Importing(import_url, tmp_path / "log", *_OPTIONS)
        await importing.write(_LISTED[: len(_LISTED) // 2], close=False)
        await catalog.until("%")
        await importing.write(_LISTED[len(_LISTED) // 2 :])
        await asyncio.sleep(random.uniform(0, 0.5))  # a random moment is the fault
        importing.kill()
        await importing.wait()
        states[await catalog.state()] += 1
        if number % 2:
            await catalog.restore()
    measure(f"left: {dict(states)}")


@pytest.mark.guarantee(15, "an import whose connection is cut after any number of bytes, in either direction")
async def test_cut_off_at_any_byte(
    postgres: EmbeddedPostgres, database_name: str, import_url: str, sql: Sql, *, long: bool, measure: Measure
) -> None:
    """A connection that is cut at any byte leaves the old or the new state, and the new one if the import reported success."""
    catalog = await Catalog.before(sql, import_url)
    states: Counter[str] = Counter()
    async with _cutting(_socket(import_url)) as cutting:
        url = f"postgresql://{Roles().imports}@127.0.0.1:{cutting.port}/{database_name}"
        cutting.at = (_NEVER, _NEVER)
        await _load(url, _NEW)
        whole = cutting.passed
        for share in [number / (200 if long else 8) for number in range(200 if long else 8)] + [1 - 1e-4]:
            for up in (True, False):
                await catalog.restore()
                cutting.at = (int(whole[0] * share), _NEVER) if up else (_NEVER, int(whole[1] * share))
                outcome = await _outcome(url)
                states[f"{outcome}: {await catalog.state()}"] += 1
    measure(", ".join(f"{count} {each}" for each, count in states.items()))
    assert states["failed: old"] > 0
    assert states["imported: old"] == 0


@pytest.mark.guarantee(15, "an import whose disk is full, with increasing free space")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a small disk")
async def test_disk_full(*, long: bool, measure: Measure) -> None:
    """On a full disk the catalog keeps the old state, until the import fits; PostgreSQL recovers when there is space again."""
    states: list[str] = []
    with _small_disk() as disk:
        settings = {"shared_buffers": "16MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
        postgres = EmbeddedPostgres(disk / "postgres", settings=settings)
        with postgres.running():
            url = postgres.url("postgres")
            await asyncio.to_thread(migrate, url)
            async with _connected(postgres) as sql:
                catalog = await Catalog.before(sql, url)
            for room_kb in range(0, 6_000, 100 if long else 1_000):
                async with _connected(postgres) as catalog.sql:
                    await catalog.restore()
                    await catalog.sql.execute("CHECKPOINT")
                with _filled(disk, room_kb * 1024):
                    outcome = await _outcome(url)
                async with _connected(postgres) as catalog.sql:
                    states.append(f"{outcome}: {await catalog.state()}")
        postgres.remove()
    measure(", ".join(f"{states.count(each)} {each}" for each in sorted(set(states))))
    assert "failed: old" in states
    assert states[-1] == "imported: new"
    assert "imported: old" not in states


@contextlib.contextmanager
def _small_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="backups-disk-", dir="/tmp") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m,mode=755", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def _filled(disk: Path, room: int) -> Iterator[None]:
    """Fill the disk, except for `room` bytes."""
    found, ballast = os.statvfs(disk), disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - room)
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.asynccontextmanager
async def _connected(postgres: EmbeddedPostgres) -> AsyncIterator[Sql]:
    """Connect as soon as PostgreSQL accepts connections; start it again if a full disk has stopped it."""

    async def connect() -> Sql:
        if not (postgres.data / "postmaster.pid").exists():
            await asyncio.to_thread(postgres.start)
        return await asyncpg.connect(postgres.url("postgres"))

    unavailable = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
    connection = await eventually(connect, lambda _: True, timeout_s=60, period_s=0.05, retried=unavailable)
    try:
        yield connection
    finally:
        await connection.close()


class _Cutting:
    """A proxy to a Unix socket that cuts the connection after a number of bytes to or from PostgreSQL."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.at = (_NEVER, _NEVER)
        self.passed = [0, 0]
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_unix_connection(self._upstream)
        self.passed = [0, 0]
        ways = (self._pass(0, reader, to_writer), self._pass(1, to_reader, writer))
        tasks = [asyncio.ensure_future(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task, end in zip(tasks, (writer, to_writer), strict=True):
            task.cancel()
            end.transport.abort()

    async def _pass(self, way: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self.passed[way] < self.at[way] and (data := await reader.read(65536)):
            data = data[: self.at[way] - self.passed[way]]
            self.passed[way] += len(data)
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def _cutting(upstream: str) -> AsyncIterator[_Cutting]:
    cutting = _Cutting(upstream)
    async with listening(cutting.serve) as cutting.port:
        yield cutting


def _socket(url: str) -> str:
    return f"{parse_qs(urlsplit(url).query)['host'][0]}/.s.PGSQL.5432"


# Concurrent imports


class _Import(NamedTuple):
    sizes: dict[int, int]
    prunes: bool


_AT_ONCE = (
    _Import(dict.fromkeys(range(20), 1), prunes=False),
    _Import(dict.fromkeys(range(10, 30), 2), prunes=False),
    _Import(dict.fromkeys(range(5, 25), 3), prunes=True),
)


def _in_sequence(order: tuple[int, ...]) -> tuple[dict[int, int], dict[int, tuple[int, ...]]]:
    """Return the rows after the imports in this order, and how many rows each has added, changed, left unchanged and removed."""
    there: dict[int, int] = dict.fromkeys(range(8), 0)
    did: dict[int, tuple[int, ...]] = {}
    for number in order:
        sizes, prunes = _AT_ONCE[number]
        removed = [day for day in there if day not in sizes] if prunes else []
        for day in removed:
            del there[day]
        changed = sum(there.get(day, size) != size for day, size in sizes.items())
        added = sum(day not in there for day in sizes)
        did[number] = (added, changed, len(sizes) - added - changed, len(removed))
        there |= sizes
    return there, did


@pytest.mark.guarantee(15, "two imports and a prune of a cluster at the same time")
async def test_concurrent_imports(
    postgres: EmbeddedPostgres, database_name: str, import_url: str, sql: Sql, tmp_path: Path, *, long: bool, measure: Measure
) -> None:
    """Concurrent imports have the same rows and print the same counts as the same imports in some sequence."""
    possible = [_in_sequence(order) for order in itertools.permutations(range(3))]
    seen: Counter[int] = Counter()
    for _ in range(20 if long else 2):
        await sql.execute("TRUNCATE backups, imports, freshness")
        await _load(import_url, dict.fromkeys(range(8), 0), prune=False)
        holder = await asyncpg.connect(postgres.url(database_name))
        async with holder.transaction():
            await holder.execute(_STEPS["lock"].lock)
            running = []
            for number, (sizes, prunes) in enumerate(_AT_ONCE):
                options = ("--prune", "--prune-any") if prunes else ()
                running.append(Importing(import_url, tmp_path / f"log-{number}", *options))
                await running[-1].write(listing(sizes))
            await eventually(
                lambda: sql.fetchval(f"SELECT count(*) {_RUNNING_IMPORTS} AND wait_event_type = 'Lock'"), len(running), timeout_s=30
            )
        await holder.close()
        assert [await each.wait() for each in running] == [0, 0, 0]
        rows = await sql.fetch("SELECT created_at, size FROM backups")
        there = {(row["created_at"] - FIRST_DAY).days: row["size"] for row in rows}
        did = {number: _counts(each.printed()) for number, each in enumerate(running)}
        assert (there, did) in possible
        seen[possible.index((there, did))] += 1
    measure(f"times, by order: {sorted(seen.values(), reverse=True)}")


def _counts(printed: str) -> tuple[int, ...]:
    found = re.search(r"(\d+) added, (\d+) changed, (\d+) unchanged, (\d+) removed", printed)
    assert found, printed
    return tuple(int(count) for count in found.groups())
