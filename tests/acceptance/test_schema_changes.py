"""Schema changes under load and during long reads.

Mitigations:
- Each migration step has a lock_timeout and is retried (migrations/env.py, service/postgres/migration.py). Without it, every call would
  wait for the long read.
- Indexes are created concurrently, which waits without a limit and blocks no call.
- Queries name their columns and run outside transactions, so that asyncpg prepares them again after a change of the schema.

The next release of these tests is this release with two more steps.
"""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from service.postgres.schema import REQUIRED_REVISION
from tests.support.catalog import AddBackups, Sql
from tests.support.commands import RunCommand, environment
from tests.support.deployment import Replica, ReplicaProcess, deployed
from tests.support.eventually import eventually
from tests.support.guarantees import Measure
from tests.support.load import under_load
from tests.support.releases import Change, altered
from tests.support.repository import ROOT

_LOCK_TIMEOUT_S = 2
_SLOWEST_S = _LOCK_TIMEOUT_S + 1

_ADD_COLUMN, _ADD_INDEX = REQUIRED_REVISION + 1, REQUIRED_REVISION + 2

_STEP = """
from alembic import op
from service.postgres.migration import create_index

revision = "{revision:04}"
down_revision = "{before:04}"


def upgrade() -> None:
    {upgrade}
"""

_WAITS_FOR_TABLE = "SELECT count(*) FROM pg_locks WHERE relation = 'backups'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted"
_HAS_COLUMN = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'backups' AND column_name = 'note'"
_INDEX_WAITS = """
    SELECT pid, query_start FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE '% INDEX CONCURRENTLY %' AND wait_event_type = 'Lock'"""


@pytest.fixture(name="next_release")
def _next_release(tmp_path: Path) -> Path:
    """Return the code of this release with two more migration steps, and queries that need the new column."""
    release = altered(
        tmp_path / "next",
        Change("service/postgres/schema.py", f"REQUIRED_REVISION = {REQUIRED_REVISION}", f"REQUIRED_REVISION = {_ADD_INDEX}"),
        Change("service/postgres/catalog.py", "SELECT wire FROM", "SELECT wire, note FROM"),
    )
    steps = {_ADD_COLUMN: 'op.execute("ALTER TABLE backups ADD COLUMN note text")',
             _ADD_INDEX: 'create_index("backups_note", "ON backups (note)")'}  # fmt: skip
    for revision, upgrade in steps.items():
        step = _STEP.format(revision=revision, before=revision - 1, upgrade=upgrade)
        (release / "migrations" / "versions" / f"{revision:04}_next.py").write_text(step, encoding="utf-8")
    return release


@pytest.mark.slow
@pytest.mark.guarantee(8, "schema upgraded under load, old and new code running, long reads holding their locks")
async def test_schema_upgrade_under_load(
    database_url: str,
    upgrade: "Upgrade",
    add_backups: AddBackups,
    import_url: str,
    command: RunCommand,
    *,
    long: bool,
    measure: Measure,
) -> None:
    """No call fails or takes more than a second longer than lock_timeout, and the previous release serves and imports on the new schema."""
    await add_backups(200)
    times = 5 if long else 1

    async with deployed(database_url) as deployment:

        async def change() -> None:
            await upgrade.add_column(given_up=times)
            await upgrade.add_index(waited_s=times * _LOCK_TIMEOUT_S + 0.5)
            await upgrade.replace(deployment.replicas if long else deployment.replicas[:1])
            await deployment.settled()

        outcomes = await under_load(deployment, change, pause_s=0.1)

    measure(f"{outcomes} (bound {_SLOWEST_S} s); the step timed out {times} times")
    assert outcomes.codes == {"OK", "HTTP 200"}
    assert outcomes.slowest < _SLOWEST_S
    listing = ROOT / "samples" / "walg-backup-list.json"
    done = await command("import", "walg", str(listing), "--folder-id", "f2", "--cluster-id", "c2", BACKUPS_DATABASE_URL=import_url)
    assert done.status == 0, done.stderr


class Upgrade:
    """The migration steps and the replicas of the next release."""

    def __init__(self, release: Path, url: str, sql: Sql) -> None:
        self._release, self._url, self._sql = release, url, sql

    async def add_column(self, *, given_up: int) -> None:
        """Add the column while a transaction reads the table, until the step has given up its lock `given_up` times."""
        async with self._migrating(to=_ADD_COLUMN), _long_read(self._url):
            for _ in range(given_up):
                await self._until(_WAITS_FOR_TABLE)
                await self._until(_WAITS_FOR_TABLE, is_true=False)
            assert not await self._sql.fetchval(_HAS_COLUMN)
        assert await self._sql.fetchval(_HAS_COLUMN)

    async def add_index(self, *, waited_s: float) -> None:
        """Create the index while a transaction runs for `waited_s`, and after an earlier attempt that left an invalid index."""
        await self._sql.execute("CREATE INDEX backups_note ON backups (note); ALTER INDEX backups_note OWNER TO backups_owner")
        await self._sql.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'backups_note'::regclass")
        async with self._migrating(to=_ADD_INDEX), _long_read(self._url):
            await self._until(_INDEX_WAITS)
            waiting = await self._sql.fetch(_INDEX_WAITS)
            await asyncio.sleep(waited_s)  # the fault itself: a transaction of this length
            assert await self._sql.fetch(_INDEX_WAITS) == waiting  # still the same attempt
        assert await self._sql.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'backups_note'::regclass")

    async def replace(self, replicas: Sequence[Replica]) -> None:
        """Replace the replicas by replicas of the next release, one by one."""
        for replica in replicas:
            assert isinstance(replica, ReplicaProcess)
            replica.release = self._release
            await replica.restart(signal.SIGTERM)

    @asynccontextmanager
    async def _migrating(self, *, to: int) -> AsyncIterator[None]:
        """Start `migrate`, and check that it has succeeded when the context is left; the tests hold locks in between."""
        log = self._release / "migrate.log"
        with log.open("ab") as output:
            command = [sys.executable, "-m", "service", "migrate", "--to", f"{to:04}"]
            settings = environment(BACKUPS_DATABASE_URL=self._url)
            process = subprocess.Popen(command, cwd=self._release, env=settings, stdout=output, stderr=output)
        try:
            yield
            assert await asyncio.to_thread(process.wait, 60) == 0, log.read_text(encoding="utf-8")
        finally:
            process.kill()

    async def _until(self, query: str, *, is_true: bool = True) -> None:
        await eventually(lambda: self._sql.fetchval(query), lambda value: bool(value) is is_true, timeout_s=30, period_s=0.01)


@pytest.fixture(name="upgrade")
def _upgrade(next_release: Path, owner_url: str, sql: Sql) -> Upgrade:
    return Upgrade(next_release, owner_url, sql)


@asynccontextmanager
async def _long_read(url: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.fetchval("SELECT count(*) FROM backups")
            yield
    finally:
        await connection.close()
