"""Cases that operators reported, judged by the command `status`: a catalog must not call a cluster safe that is not."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Done, RunCommand
from tests.support.gpbackup_history import write_history

_C1 = ("--folder-id", "f1", "--cluster-id", "c1")
_INCREMENT = {"incremental": 1}


def _ago(**length: float) -> str:
    return f"{datetime.now(UTC) - timedelta(**length):%Y%m%d%H%M%S}"


def _row(timestamp: str, **changes: Any) -> dict[str, Any]:
    return {"timestamp": timestamp, "end_time": timestamp} | changes


def _walg(started: datetime, **changes: Any) -> dict[str, Any]:
    item = {"Name": f"backup_{started:%Y%m%dT%H%M%SZ}", "compressed_size": 1000, "is_permanent": False}
    times = {"start_time": f"{started:%Y-%m-%dT%H:%M:%SZ}", "finish_time": f"{started + timedelta(minutes=1):%Y-%m-%dT%H:%M:%SZ}"}
    return item | times | changes


class _Catalog:
    """Imports, and `status` with the role of the service."""

    def __init__(self, run: RunCommand, import_url: str, database_url: str, folder: Path) -> None:
        self._run, self._import_url, self._database_url, self._folder = run, import_url, database_url, folder

    async def gpbackup(self, *rows: dict[str, Any], plans: Any = ()) -> Done:
        history = write_history(self._folder / f"{len(list(self._folder.iterdir()))}.db", *rows, plans=plans)
        return await self._import("gpbackup", str(history), "--timezone", "Etc/UTC", *_C1)

    async def walg(self, *items: dict[str, Any], options: tuple[str, ...] = ()) -> Done:
        return await self._import("walg", *_C1, *options, stdin=json.dumps(items).encode())

    async def _import(self, *arguments: str, stdin: bytes = b"") -> Done:
        done: Done = await self._run("import", *arguments, stdin=stdin, BACKUPS_DATABASE_URL=self._import_url)
        assert done.status == 0, done.stderr
        return done

    async def status(self, *arguments: str) -> Done:
        done: Done = await self._run("status", *arguments, BACKUPS_DATABASE_URL=self._database_url)
        return done

    async def rules(self, *arguments: str) -> tuple[int, list[tuple[str | None, str]]]:
        """Return the exit status, and the database and the name of each broken rule."""
        done = await self.status("--json", *arguments)
        return done.status, [(each["database"], each["rule"]) for each in json.loads(done.stdout)["overdue"]]

    async def findings(self) -> list[str]:
        """Return the cells of FINDINGS."""
        header, *lines = (await self.status()).stdout.splitlines()
        start, end = header.index("FINDINGS"), header.index("SKIPPED")
        return [line[start:end].rsplit("  ", 1)[0].strip() for line in lines]


@pytest.fixture(name="catalog")
def _catalog(command: RunCommand, import_url: str, database_url: str, tmp_path: Path) -> _Catalog:
    return _Catalog(command, import_url, database_url, tmp_path)


async def test_metadata_of_another_database(catalog: _Catalog) -> None:
    """A new metadata-only backup of one database does not hide that another one has only an old backup (G1)."""
    await catalog.gpbackup(_row(_ago(days=21), database_name="sales"), _row(_ago(minutes=30), database_name="postgres", metadata_only=1))
    assert await catalog.rules("--max-age", "26h") == (2, [("postgres", "no-restorable-backup"), ("sales", "max-age")])
    assert await catalog.rules("--max-age", "22d") == (2, [("postgres", "no-restorable-backup")])
    [postgres, sales] = json.loads((await catalog.status("--json")).stdout)["clusters"]
    assert (postgres["ageSeconds"], postgres["partial"], sales["lastPartialId"]) == (None, 1, None)
    assert 1700 < postgres["partialAgeSeconds"] < 2400


async def test_failed_and_running_attempts(catalog: _Catalog) -> None:
    """A failed attempt and a running one after the last restorable backup are shown (G2)."""
    failed, running = _ago(hours=2), _ago(hours=1)
    await catalog.gpbackup(_row(_ago(hours=30)), _row(failed, status="Failure"), _row(running, status="In Progress"))
    assert await catalog.findings() == ["1 failed, running"]
    [shown] = json.loads((await catalog.status("--json")).stdout)["clusters"]
    assert (shown["lastFailedName"], shown["runningName"], shown["backups"]) == (failed, running, 1)
    assert await catalog.rules("--max-age", "26h") == (2, [("demo", "max-age")])


async def test_broken_chains(catalog: _Catalog) -> None:
    """Increments of a deleted base, or of one that is not listed, are shown as broken and are overdue, for both tools (G3)."""
    base, first, second = _ago(days=3), _ago(hours=3), _ago(hours=2)
    deleted = _row(base, date_deleted=_ago(days=1))
    plans = [(first, base), (first, first), (second, base), (second, second)]
    await catalog.gpbackup(deleted, _row(first, **_INCREMENT), _row(second, **_INCREMENT), plans=plans)
    await catalog.walg(_walg(datetime.now(UTC) - timedelta(hours=2), increment_from="backup_20261101T010000Z"))
    assert await catalog.findings() == ["2 broken", "1 broken"]
    assert await catalog.rules("--max-age", "26h") == (2, [("demo", "no-restorable-backup"), (None, "no-restorable-backup")])
    assert "there is no restorable backup (2 broken)." in (await catalog.status("--max-age", "26h", "--tool", "gpbackup")).stderr


async def test_missing_backup(catalog: _Catalog) -> None:
    """A backup that the newest listing no longer has does not count as the last one."""
    now = datetime.now(UTC)
    old, new = _walg(now - timedelta(days=3)), _walg(now - timedelta(hours=2))
    await catalog.walg(old, new)
    assert await catalog.rules("--max-age", "26h") == (0, [])
    await catalog.walg(old)
    assert await catalog.findings() == ["1 missing"]
    assert await catalog.rules("--max-age", "26h") == (2, [(None, "max-age")])


async def test_bases_apart(catalog: _Catalog) -> None:
    """--max-age-base judges the last base, although a newer increment meets --max-age."""
    now = datetime.now(UTC)
    base = _walg(now - timedelta(days=9))
    await catalog.walg(base, _walg(now - timedelta(hours=2), increment_from=base["Name"]))
    assert await catalog.rules("--max-age", "26h", "--max-age-base", "10d") == (0, [])
    assert await catalog.rules("--max-age", "26h", "--max-age-base", "8d") == (2, [(None, "max-age-base")])


async def test_never_a_usable_backup(catalog: _Catalog) -> None:
    """A cluster with failures only, or with nothing since everything was pruned, is overdue (G4)."""
    await catalog.gpbackup(_row(_ago(hours=2), status="Failure"))
    assert await catalog.rules("--max-age", "26h") == (2, [("demo", "no-restorable-backup")])
    assert await catalog.findings() == ["1 failed"]
    await catalog.walg(_walg(datetime.now(UTC) - timedelta(hours=2)))
    assert await catalog.rules("--max-age", "26h", "--tool", "walg") == (0, [])
    await catalog.walg(options=("--prune", "--prune-any"))
    assert await catalog.rules("--max-age", "26h", "--tool", "walg") == (2, [(None, "no-restorable-backup")])


async def test_expected_but_never_imported(catalog: _Catalog, tmp_path: Path) -> None:
    """--expect judges the clusters that its file names, and one that was never imported is overdue (G4)."""
    await catalog.gpbackup(_row(_ago(hours=2)), _row(_ago(days=9), database_name="old"))
    file = tmp_path / "expected"
    file.write_text("c1 gpbackup demo 26h\n")
    assert await catalog.rules("--expect", str(file)) == (0, [])
    file.write_text("c1 gpbackup demo 26h\nc1 gpbackup old 8d\nc2 # new\n")
    done = await catalog.status("--expect", str(file))
    assert done.status == 2
    assert done.stderr.splitlines() == [
        "Overdue: cluster c1, gpbackup, database old: the last restorable backup was completed 9d 0h ago.",
        "Overdue: cluster c2: it was never imported.",
    ]
    file.write_text("c1\nc1 barman\n")
    done = await catalog.status("--expect", str(file))
    assert (done.status, done.stdout) == (1, "")
    assert f"--expect {file}, line 2: 'barman' is neither a tool" in done.stderr
    done = await catalog.status("--expect", str(file), "--tool", "walg")
    assert (done.status, done.stdout) == (2, "")
    assert "leave out --folder-id, --cluster-id and --tool" in done.stderr


async def test_sizes_of_zero_and_unknown(catalog: _Catalog) -> None:
    """An unknown size is `-` and null, and a size of 0 is 0 (G5)."""
    await catalog.gpbackup(_row(_ago(hours=2)))
    await catalog.walg(_walg(datetime.now(UTC) - timedelta(hours=2), compressed_size=0))
    assert [each["sizeBytes"] for each in json.loads((await catalog.status("--json")).stdout)["clusters"]] == [None, 0]
    header, *lines = (await catalog.status()).stdout.splitlines()
    end = header.index("SIZE") + len("SIZE")
    assert [line[:end].split("  ")[-1].strip() for line in lines] == ["-", "0 B"]


async def test_backup_from_the_future(catalog: _Catalog) -> None:
    """The import warns about a backup that is dated in the future, and `status` names the rule (G6)."""
    done = await catalog.walg(_walg(datetime.now(UTC) + timedelta(hours=6)))
    assert "in the future" in done.stdout + done.stderr
    assert await catalog.rules("--max-age", "26h") == (2, [(None, "future")])
