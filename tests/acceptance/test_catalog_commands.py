"""The commands `import gpbackup`, `status` and `remove-cluster`, each in its own process."""

import json
import os
import pty
import shutil
import sqlite3
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from tests.support import processes
from tests.support.catalog import Sql
from tests.support.commands import Done, RunCommand, environment
from tests.support.repository import ROOT

_HISTORY = ROOT / "samples" / "gpbackup_history.db"
_LISTING = ROOT / "samples" / "walg-backup-list.json"
_C1 = ("--folder-id", "f1", "--cluster-id", "c1")
_GPBACKUP = ("--timezone", "Europe/Berlin", *_C1)


class _Cli:
    """The command with the role of imports, and `status` with the role of the service."""

    def __init__(self, run: RunCommand, import_url: str, database_url: str) -> None:
        self._run, self._import_url, self._database_url = run, import_url, database_url

    async def __call__(self, *arguments: str, stdin: bytes = b"") -> Done:
        return await self._run(*arguments, stdin=stdin, BACKUPS_DATABASE_URL=self._import_url)

    async def status(self, *arguments: str) -> Done:
        return await self._run("status", *arguments, BACKUPS_DATABASE_URL=self._database_url)

    async def error(self, *arguments: str) -> str:
        """Run a command that fails with status 1 and prints nothing else; return its error message."""
        done = await self(*arguments)
        assert (done.status, done.stdout) == (1, "")
        assert "Traceback" not in done.stderr
        return done.stderr.removeprefix("backup-service: ").rstrip("\n")


@pytest.fixture(name="cli")
def _cli(command: RunCommand, import_url: str, database_url: str) -> _Cli:
    return _Cli(command, import_url, database_url)


async def _rows(sql: Sql) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await sql.fetch("SELECT source_cluster_id, tool, id FROM backups ORDER BY id")]


async def test_import_gpbackup(cli: _Cli, sql: Sql) -> None:
    """A history of several databases becomes one list, with the types counted; importing it again writes nothing."""
    first = await cli("import", "gpbackup", str(_HISTORY), *_GPBACKUP)
    assert (first.status, first.stderr) == (0, "")
    assert first.stdout.splitlines()[:2] == [
        "Imported cluster c1 into folder f1: 10 added, 0 changed, 0 unchanged, 0 removed, 4 skipped.",
        "  The listing has 6 full, 2 incremental, 1 metadata-only, 1 data-only, 1 filtered.",
    ]
    written = await sql.fetch("SELECT id, xmin::text FROM backups ORDER BY id")
    again = await cli("import", "gpbackup", str(_HISTORY), *_GPBACKUP)
    assert again.stdout.splitlines()[-1] == "The catalog is already up to date."
    assert await sql.fetch("SELECT id, xmin::text FROM backups ORDER BY id") == written


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([str(_HISTORY), *_C1], 2, "Missing option '--timezone'"),
        ([str(_HISTORY), *_C1, "--timezone", "Berlin"], 1, "'Berlin' is not a time zone: pass the coordinator's to --timezone, such as"),
        (["/none/x.db", *_GPBACKUP], 1, "/none/x.db: No such file or directory"),
        ([str(_LISTING), *_GPBACKUP], 1, "is not a SQLite file"),
        ([str(_HISTORY), *_GPBACKUP, "--backup-dir", "/none"], 2, "'/none' does not exist"),
        ([str(_HISTORY), *_GPBACKUP, "--since", "yesterday"], 2, "must be a time with its offset, such as 2026-11-20T00:00:00Z"),
        ([str(_HISTORY), *_GPBACKUP, "--since", "2026-11-20T00:00:00"], 2, "must be a time with its offset"),
        ([str(_HISTORY), *_GPBACKUP, "--cluster-id", "x" * 25], 1, "--id-prefix"),
    ],
)
async def test_rejected_imports(cli: _Cli, sql: Sql, arguments: list[str], status: int, message: str) -> None:
    """A history that cannot be imported, or a wrong option, is an error with the reason, and writes nothing."""
    done = await cli("import", "gpbackup", *arguments)
    assert (done.status, done.stdout) == (status, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert await sql.fetchval("SELECT (SELECT count(*) FROM backups) + (SELECT count(*) FROM imports)") == 0


async def test_wrong_time_zone(cli: _Cli) -> None:
    """A time that does not exist in the zone is skipped, counted and named, with a hint at --timezone, and does not prevent the import."""
    done = await cli("import", "gpbackup", str(_HISTORY), *_C1, "--timezone", "Europe/London")
    assert (done.status, done.stderr) == (0, "")
    assert "9 added" in done.stdout
    assert (
        "  skipped: backup 20260329013000: timestamp: 2026-03-29 01:30:00 does not exist in Europe/London: "
        "if --timezone is wrong, all times of this import are wrong" in done.stdout.splitlines()
    )


def _newest(path: Path, count: int) -> Path:
    """Copy the newest rows of the sample: a promoted coordinator may have started a new history."""
    shutil.copy(_HISTORY, path)
    connection = sqlite3.connect(path)
    connection.execute(f"DELETE FROM backups WHERE timestamp NOT IN (SELECT timestamp FROM backups ORDER BY timestamp DESC LIMIT {count})")
    connection.commit()
    connection.close()
    return path


async def test_after_a_failover(cli: _Cli, sql: Sql, tmp_path: Path) -> None:
    """Backups that a history has lost are kept as missing, --prune refuses to remove most of a database, and --prune-any removes them."""
    await cli("import", "gpbackup", str(_HISTORY), *_GPBACKUP)
    fresh = str(_newest(tmp_path / "gpbackup_history.db", 3))
    assert "  8 newly missing from the listing" in (await cli("import", "gpbackup", fresh, *_GPBACKUP)).stdout
    error = await cli.error("import", "gpbackup", fresh, *_GPBACKUP, "--prune")
    assert error.startswith("1 of this cluster's 1 backups of database 'Sales DW' are not in the listing")
    assert len(await _rows(sql)) == 10
    assert "8 removed" in (await cli("import", "gpbackup", fresh, *_GPBACKUP, "--prune", "--prune-any")).stdout


async def test_prune_of_one_tool(cli: _Cli, sql: Sql, tmp_path: Path) -> None:
    """--prune with gpbackup's history removes a deleted backup, and none of WAL-G's backups of the same cluster."""
    await cli("import", "walg", str(_LISTING), *_C1)
    await cli("import", "gpbackup", str(_HISTORY), *_GPBACKUP)
    history = tmp_path / "gpbackup_history.db"
    shutil.copy(_HISTORY, history)
    connection = sqlite3.connect(history)
    connection.execute("UPDATE backups SET date_deleted = '20261120000000' WHERE timestamp = '20261101010002'")
    connection.commit()
    connection.close()
    assert " 9 unchanged, 1 removed, 5 skipped" in (await cli("import", "gpbackup", str(history), *_GPBACKUP, "--prune")).stdout
    assert [tool for _, tool, _ in await _rows(sql)].count("walg") == 4


async def test_clone(cli: _Cli, sql: Sql) -> None:
    """The backups that a clone's listing has of its source get ids of the clone, and --since skips them but removes none."""
    await cli("import", "gpbackup", str(_HISTORY), *_GPBACKUP)
    of_c1 = await _rows(sql)
    of_clone = ("--folder-id", "f1", "--cluster-id", "c2")
    gpbackup = ("import", "gpbackup", str(_HISTORY), *of_clone, "--timezone", "Europe/Berlin")
    assert "10 added" in (await cli(*gpbackup)).stdout
    assert [row for row in await _rows(sql) if row[0] == "c1"] == of_c1

    done = await cli(*gpbackup, "--since", "2026-11-05T02:15:00+01:00", "--prune", "--prune-any")
    assert "0 added, 0 changed, 3 unchanged, 0 removed, 11 skipped" in done.stdout
    assert "  7 skipped: completed before --since" in done.stdout
    assert len([row for row in await _rows(sql) if row[0] == "c2"]) == 10

    await cli("remove-cluster", "--cluster-id", "c2", "--yes")
    assert "3 added" in (await cli(*gpbackup, "--since", "2026-11-05T02:15:00+01:00")).stdout
    assert [row[2] for row in await _rows(sql) if row[0] == "c2"] == ["c2:20261105020001", "c2:20261109010001", "c2:20261110010002"]

    done = await cli("import", "walg", str(_LISTING), *of_clone, "--since", "2026-11-22T00:39:40Z")
    assert "2 added, 0 changed, 0 unchanged, 0 removed, 2 skipped" in done.stdout


async def test_backup_dir(cli: _Cli, sql: Sql, tmp_path: Path) -> None:
    """With --backup-dir, a local backup with all its directories has the size of its files; the others have none and a warning."""
    for content in range(-1, 8):
        place = tmp_path / f"gpseg{content}/backups/20261104/20261104010002"
        place.mkdir(parents=True)
        (place / "data").write_bytes(b"x" * 100)
    done = await cli("import", "gpbackup", str(_HISTORY), *_GPBACKUP, "--backup-dir", str(tmp_path))
    assert "  5 size unknown: 0 of 9 directories reachable [" in done.stdout
    assert "  4 size unknown: gpbackup records none, and a plugin stores the files [" in done.stdout
    sizes = await sql.fetch("SELECT id, size FROM backups WHERE size > 0")
    assert [tuple(row) for row in sizes] == [("c1:20261104010002", 900)]


# Status


_STATUS = {
    "folderId": "f1",
    "clusterId": "c1",
    "tool": "walg",
    "database": None,
    "lastBackupId": "c9q3vd0k8m1nt5rj2hfe",
    "lastCompletedAt": "2026-11-23T20:02:11.357020Z",
    "lastBaseId": "c9q3vd0k8m1nt5rj2hfe",
    "lastBaseCompletedAt": "2026-11-23T20:02:11.357020Z",
    "lastPartialId": None,
    "lastPartialCompletedAt": None,
    "partialAgeSeconds": None,
    "method": "base",
    "durationSeconds": 8551.456203,
    "sizeBytes": 913800120559,
    "failedAttempts": None,
    "lastFailedName": None,
    "lastFailedStartedAt": None,
    "runningName": None,
    "runningStartedAt": None,
    "runState": None,
    "restorable": 4,
    "partial": 0,
    "broken": 0,
    "unknown": 0,
    "missing": 0,
    "skipped": 0,
    "unusable": 0,
    "excluded": 0,
    "backups": 4,
}
"""Entry of a cluster in the JSON of `status`, without values that depend on the current time."""


async def test_status(cli: _Cli) -> None:
    """`status` shows each cluster's last backup and last import as a table and as JSON, with a role that can only read."""
    nothing = await cli.status()
    assert (nothing.status, nothing.stdout) == (0, "")
    assert nothing.stderr == "The catalog has no import.\n"
    await cli("import", "walg", str(_LISTING), *_C1)
    await cli("import", "gpbackup", str(_HISTORY), "--timezone", "Europe/Berlin", "--folder-id", "f2", "--cluster-id", "c2")

    done = await cli.status()
    header, walg, sales, demo = [line.split() for line in done.stdout.splitlines()]
    assert " ".join(header) == (
        "FOLDER CLUSTER TOOL DATABASE LAST RESTORABLE AGE BASE AGE PARTIAL AGE METHOD DURATION SIZE FINDINGS "
        "SKIPPED BACKUPS LAST IMPORTED IMPORT AGE"
    )
    assert walg[:6] == ["f1", "c1", "walg", "-", "2026-11-23", "20:02:11Z"]
    assert sales[:7] == ["f2", "c2", "gpbackup", "Sales", "DW", "2026-11-05", "01:15:00Z"]
    assert demo[:6] == ["f2", "c2", "gpbackup", "demo", "2026-11-10", "02:41:20Z"]
    assert len((await cli.status("--folder-id", "f2")).stdout.splitlines()) == 3
    assert await cli.status("--folder-id", "f3") == Done(0, "", "No import matches these filters.\n")

    [only] = json.loads((await cli.status("--cluster-id", "c1", "--json")).stdout)["clusters"]
    ages = [only.pop("ageSeconds"), only.pop("importAgeSeconds")]
    assert ages[0] > ages[1] > 0
    assert only.pop("baseAgeSeconds") == pytest.approx(ages[0])
    assert datetime.now(UTC) - datetime.fromisoformat(only.pop("lastImportedAt")) < timedelta(minutes=10)
    assert only == _STATUS


async def test_max_age(cli: _Cli, sql: Sql) -> None:
    """--max-age exits with 2 and the reasons if a last backup or import is older, dated in the future, or missing."""
    assert (await cli.status("--max-age", "26h")).status == 2  # the catalog is empty
    await cli("import", "walg", str(_LISTING), *_C1)
    await sql.execute("UPDATE freshness SET last_created_at = now() - interval '25 hours'")
    young = await cli.status("--max-age", "26h")
    assert (young.status, young.stderr) == (0, "")
    assert json.loads((await cli.status("--max-age", "26h", "--json")).stdout)["overdue"] == []

    await sql.execute("UPDATE freshness SET last_created_at = now() + interval '25 hours 1 minute'")
    ahead = await cli.status("--max-age", "26h")  # it would hide that no later backup is made
    assert (ahead.status, ahead.stderr) == (2, "Overdue: cluster c1, walg: the last restorable backup is dated 1d 1h in the future.\n")
    await sql.execute("UPDATE freshness SET last_created_at = now() - interval '25 hours'")

    old = await cli.status("--max-age", "24h")
    assert (old.status, old.stderr) == (2, "Overdue: cluster c1, walg: the last restorable backup was completed 1d 1h ago.\n")
    await sql.execute("UPDATE imports SET imported_at = now() - interval '3 days'")
    stale = await cli.status("--max-age", "26h", "--json")
    [overdue] = json.loads(stale.stdout)["overdue"]
    assert (stale.status, overdue["rule"], overdue["reason"]) == (2, "import-age", "the last import was 3d 0h ago")
    await sql.execute("UPDATE imports SET imported_at = now(); UPDATE freshness SET last_created_at = NULL")
    none = await cli.status("--max-age", "26h")
    assert (none.status, none.stderr) == (2, "Overdue: cluster c1, walg: there is no restorable backup.\n")
    assert (await cli.status("--cluster-id", "misspelt", "--max-age", "26h")).status == 2


@pytest.mark.parametrize("duration", ["", "26", "h", "-1h", "1.5h", "1w", "١h", "9999999d"])
async def test_bad_durations(cli: _Cli, duration: str) -> None:
    """A malformed --max-age is a usage error."""
    done = await cli.status("--max-age", duration)
    assert (done.status, done.stdout) == (2, "")
    assert "such as 26h" in done.stderr


async def test_status_without_a_database(command: RunCommand) -> None:
    """If the database is unavailable, `status` exits with 1, and not with 2 as for an old backup."""
    done = await command("status", "--max-age", "26h", BACKUPS_DATABASE_URL="postgresql://user:hunter2@127.0.0.1:1/none")
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith("backup-service: cannot connect to 127.0.0.1:1: connection refused")
    assert "hunter2" not in done.stderr


# Remove a cluster


async def test_remove_cluster(cli: _Cli, sql: Sql) -> None:
    """The preview names all rows. Nothing is removed by a dry run or without a terminal to confirm on, and --yes removes all rows."""
    await cli("import", "walg", str(_LISTING), *_C1)
    rows = "cluster c1:\n  folder f1, walg: 4 backups, the last completed 2026-11-23 20:02:11Z, and the record of their import\n"
    assert await cli("remove-cluster", "--cluster-id", "c1", "--dry-run") == Done(0, f"Would remove from {rows}", "")
    message = "backup-service: nothing was removed: pass --yes when there is no terminal to confirm on\n"
    assert await cli("remove-cluster", "--cluster-id", "c1") == Done(1, "", f"About to remove from {rows}{message}")
    assert len(await _rows(sql)) == 4
    assert await cli("remove-cluster", "--cluster-id", "c1", "--folder-id", "f1", "--yes") == Done(0, f"Removed from {rows}", "")
    assert await _rows(sql) == []
    assert await sql.fetchval("SELECT count(*) FROM imports") == 0
    assert await cli.error("remove-cluster", "--cluster-id", "c1", "--yes") == "the catalog has no rows of cluster c1"


@pytest.mark.parametrize(("answer", "status", "remaining"), [("y\n", 0, 0), ("n\n", 1, 4), ("\n", 1, 4)])
async def test_remove_cluster_confirmation(cli: _Cli, sql: Sql, import_url: str, answer: str, status: int, remaining: int) -> None:
    """On a terminal the command asks for confirmation, and removes nothing without a yes."""
    await cli("import", "walg", str(_LISTING), *_C1)
    leader, follower = pty.openpty()
    async with processes.running(
        *(sys.executable, "-m", "service", "remove-cluster", "--cluster-id", "c1"),
        cwd=ROOT,
        env=environment(BACKUPS_DATABASE_URL=import_url, TERM="xterm"),
        stdin=follower,
        stdout=follower,
        stderr=follower,
    ) as process:
        os.close(follower)
        os.write(leader, answer.encode())
        assert await process.wait() == status
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert "walg: 4 backups" in shown
    assert "Remove it from the catalog? [y/N]" in shown
    assert len(await _rows(sql)) == remaining


async def test_role_without_write_access(command: RunCommand, cli: _Cli, database_url: str, sql: Sql) -> None:
    """With the role of the service, commands that write fail with one clear line."""
    await cli("import", "walg", str(_LISTING), *_C1)
    for arguments in (("remove-cluster", "--cluster-id", "c1", "--yes"), ("import", "gpbackup", str(_HISTORY), *_GPBACKUP)):
        done = await command(*arguments, BACKUPS_DATABASE_URL=database_url)
        assert (done.status, done.stdout) == (1, "")
        reason = "backup-service: the role of BACKUPS_DATABASE_URL may not write to the catalog: permission denied for table "
        assert done.stderr.startswith(reason)
    assert len(await _rows(sql)) == 4


async def test_read_only_database(postgres: EmbeddedPostgres, import_url: str, cli: _Cli, sql: Sql) -> None:
    """An import into a read-only database fails with one clear line."""
    await sql.execute("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$")
    assert "may not write" in await cli.error("import", "walg", str(_LISTING), *_C1)


# Help and completion


async def test_exit_statuses_are_documented(command: RunCommand) -> None:
    """`--help` explains the exit statuses; a wrong command line exits with 2."""
    done = await command("--help")
    assert "Exit status: 0: success;\n  1: failure, with the reason" in done.stdout
    assert "2: wrong command line" in done.stdout
    assert (await command("lsit")).status == 2


async def test_completion(tmp_path: Path) -> None:
    """The completion script for bash completes commands and options."""
    shell = shutil.which("bash")
    assert shell
    script = tmp_path / "completion.sh"
    (tmp_path / "backup-service").symlink_to(ROOT / "backup-service")
    lines = [
        f"_BACKUP_SERVICE_COMPLETE=source_bash backup-service > {script}",
        f". {script}",
        'complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _backup_service_completion "$1"; echo "${COMPREPLY[@]}"; }',
        "complete_words backup-service import gp",
        "complete_words backup-service status --max-age-",
        "complete -p backup-service",
    ]
    done = await processes.run(shell, "-c", "\n".join(lines), env=environment() | {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    printed = done.stdout.decode().splitlines()
    assert printed[:2] == ["gpbackup", "--max-age-base"], done.stderr.decode()
    assert "_backup_service_completion" in printed[2]
