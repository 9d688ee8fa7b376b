"""Cases that operators reported, judged by the command `status`: a cluster without a restorable backup must not look safe."""

import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

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


async def test_age_of_the_last_base(catalog: _Catalog) -> None:
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


# Nagios


async def _plugin(catalog: _Catalog, *arguments: str) -> tuple[int, str]:
    """Return the exit status of a plugin and its only line, without performance data."""
    done = await catalog.status("--nagios", *arguments)
    [line] = done.stdout.splitlines()
    return done.status, line.split(" | ")[0]


async def test_nagios(catalog: _Catalog) -> None:
    """--nagios prints one line with performance data, and exits with 0, 1 or 2."""
    assert await _plugin(catalog) == (2, "BACKUPS CRITICAL - nothing was imported")
    await catalog.gpbackup(_row(_ago(hours=2)), _row(_ago(hours=30), database_name="a|b"))
    done = await catalog.status("--nagios", "--warn-age", "32h", "--max-age", "36h")
    message, data = done.stdout.rstrip("\n").split(" | ")
    assert (done.status, message, done.stderr) == (0, "BACKUPS OK - 2 checked", "")
    age, *counts = data.split()
    assert re.fullmatch(r"age=10[89]\d{3}s;115200;129600;0", age)
    assert counts == [f"{name};;;0" for name in ("checked=2", "overdue=0", "failed=0", "broken=0", "unknown=0", "missing=0")]

    text = "cluster c1, gpbackup, database a\\x7cb: the last restorable backup was completed 1d 6h ago"
    assert await _plugin(catalog, "--warn-age", "26h", "--max-age", "36h") == (1, f"BACKUPS WARNING - {text}")
    assert await _plugin(catalog, "--max-age", "26h") == (2, f"BACKUPS CRITICAL - {text}")


async def test_nagios_of_a_tool_without_attempts(catalog: _Catalog) -> None:
    """The performance data has no number of failed attempts if the tool records none."""
    await catalog.walg(_walg(datetime.now(UTC) - timedelta(hours=2)))
    assert "failed=U;;;0" in (await catalog.status("--nagios")).stdout


async def test_nagios_of_failed_attempts(catalog: _Catalog) -> None:
    """A failed attempt after the last restorable backup is a warning, before the backup is too old."""
    await catalog.gpbackup(_row(_ago(hours=9)), _row(_ago(hours=2), status="Failure"))
    text = "cluster c1, gpbackup, database demo: an attempt failed after the last restorable backup"
    assert await _plugin(catalog, "--max-age", "26h") == (1, f"BACKUPS WARNING - {text}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "--nagios"), "BACKUPS UNKNOWN - cannot connect to 127.0.0.1:1"),
        (("status", "--nagios", "--max-age", "x"), "BACKUPS UNKNOWN - Invalid value for '--max-age'"),
        (("status", "--nagios", "--json"), "BACKUPS UNKNOWN - Invalid value for --nagios: prints one line"),
        (("status", "--nagios", "--expect", "/none"), "BACKUPS UNKNOWN - --expect /none: No such file"),
        (("status", "--nagios", "--odd"), "BACKUPS UNKNOWN - No such option"),
        (("sttus", "--nagios"), "BACKUPS UNKNOWN - No such command"),
    ],
)
async def test_nagios_errors(command: RunCommand, arguments: tuple[str, ...], message: str) -> None:
    """Every error of a plugin, even of its command line, is one line on standard output and exits with 3."""
    done = await command(*arguments, BACKUPS_DATABASE_URL="postgresql://user:hunter2@127.0.0.1:1/none")
    assert (done.status, done.stdout.count("\n")) == (3, 1)
    assert done.stdout.startswith(message)
    assert "hunter2" not in done.stdout + done.stderr


# Textfile


async def test_textfile(catalog: _Catalog, tmp_path: Path) -> None:
    """--textfile replaces a file with the metrics of the catalog, and an unknown size has no sample (G5)."""
    await catalog.gpbackup(_row(_ago(hours=2)), _row(_ago(hours=1), status="Failure"))
    await catalog.walg(_walg(datetime.now(UTC) - timedelta(hours=2), compressed_size=0))
    folder = tmp_path / "textfiles"
    folder.mkdir()
    file = folder / "backups.prom"
    file.write_text("old")
    inode = file.stat().st_ino
    assert (await catalog.status("--textfile", str(file))).status == 0
    assert (list(folder.iterdir()), file.stat().st_ino == inode) == ([file], False)
    samples = {
        (sample.name, sample.labels.get("tool"), sample.labels.get("database")): sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }
    assert [samples.get(("backup_catalog_last_size_bytes", *owner)) for owner in (("gpbackup", "demo"), ("walg", ""))] == [None, 0]
    assert [samples.get(("backup_catalog_failed_attempts", *owner)) for owner in (("gpbackup", "demo"), ("walg", ""))] == [1, None]
    assert samples["backup_catalog_restorable_backups", "gpbackup", "demo"] == 1
    assert time.time() - samples["backup_catalog_refresh_timestamp_seconds", None, None] < 600


@pytest.mark.parametrize(("name", "status", "message"), [("x.txt", 2, "must end in .prom"), ("none/x.prom", 1, "No such file")])
async def test_textfiles_that_cannot_be_written(catalog: _Catalog, tmp_path: Path, name: str, status: int, message: str) -> None:
    """A file that cannot be written, or that node_exporter ignores, is an error."""
    done = await catalog.status("--textfile", str(tmp_path / name))
    assert (done.status, done.stdout) == (status, "")
    assert message in done.stderr
