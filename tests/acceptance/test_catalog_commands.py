"""The commands that fill, show and clear the catalog, in processes of their own: gpbackup's import, status, forget."""

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
    """The command, with the role of imports, or the service's."""

    def __init__(self, run: RunCommand, import_url: str, database_url: str) -> None:
        self._run, self._import_url, self._database_url = run, import_url, database_url

    async def __call__(self, *arguments: str, stdin: bytes = b"") -> Done:
        return await self._run(*arguments, stdin=stdin, BACKUPS_DATABASE_URL=self._import_url)

    async def status(self, *arguments: str) -> Done:
        return await self._run("status", *arguments, BACKUPS_DATABASE_URL=self._database_url)

    async def refused(self, *arguments: str) -> str:
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
    """A history of several databases becomes one list; again is nothing; the kinds, which the API cannot say, are counted."""
    first = await cli("import", "gpbackup", str(_HISTORY), *_GPBACKUP)
    assert (first.status, first.stderr) == (0, "")
    assert first.stdout.splitlines()[:2] == [
        "Imported cluster c1 into folder f1: 10 added, 0 changed, 0 unchanged, 0 removed, 4 skipped.",
        "  The listing has 6 full, 2 incremental, 1 metadata-only, 1 data-only, 1 filtered.",
    ]
    written = await sql.fetch("SELECT id, xmin::text FROM backups ORDER BY id")
    again = await cli("import", "gpbackup", str(_HISTORY), *_GPBACKUP)
    assert again.stdout.splitlines()[-1] == "The catalog already said all this: nothing changed."
    assert await sql.fetch("SELECT id, xmin::text FROM backups ORDER BY id") == written


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([str(_HISTORY), *_C1], 2, "Missing option '--timezone'"),
        ([str(_HISTORY), *_C1, "--timezone", "Berlin"], 1, "'Berlin' is no time zone: --timezone names the coordinator's, such as"),
        (
            [str(_HISTORY), *_C1, "--timezone", "Europe/London"],
            1,
            "does not exist in Europe/London: is the zone right? Nothing was",
        ),
        (["/none/x.db", *_GPBACKUP], 1, "/none/x.db: No such file or directory"),
        ([str(_LISTING), *_GPBACKUP], 1, "is no SQLite file"),
        ([str(_HISTORY), *_GPBACKUP, "--backup-dir", "/none"], 2, "'/none' does not exist"),
        ([str(_HISTORY), *_GPBACKUP, "--since", "yesterday"], 2, "must be a time with its offset, such as 2026-11-20T00:00:00Z"),
        ([str(_HISTORY), *_GPBACKUP, "--since", "2026-11-20T00:00:00"], 2, "must be a time with its offset"),
        ([str(_HISTORY), *_GPBACKUP, "--cluster-id", "x" * 25], 1, "--id-prefix"),
    ],
)
async def test_refused_imports(cli: _Cli, sql: Sql, arguments: list[str], status: int, message: str) -> None:
    """What cannot be imported says why, in one line or as a matter of usage, and writes nothing."""
    done = await cli("import", "gpbackup", *arguments)
    assert (done.status, done.stdout) == (status, "")
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert await sql.fetchval("SELECT (SELECT count(*) FROM backups) + (SELECT count(*) FROM imports)") == 0


def _newest(path: Path, count: int) -> Path:
    """The sample as a promoted coordinator may have it: begun afresh."""
    shutil.copy(_HISTORY, path)
    connection = sqlite3.connect(path)
    connection.execute(f"DELETE FROM backups WHERE timestamp NOT IN (SELECT timestamp FROM backups ORDER BY timestamp DESC LIMIT {count})")
    connection.commit()
    connection.close()
    return path


async def test_after_a_failover(cli: _Cli, sql: Sql, tmp_path: Path) -> None:
    """A history that has lost most of its rows changes nothing, and with --prune is refused; what it lost stays in the catalog."""
    await cli("import", "gpbackup", str(_HISTORY), *_GPBACKUP)
    fresh = str(_newest(tmp_path / "gpbackup_history.db", 3))
    assert (await cli("import", "gpbackup", fresh, *_GPBACKUP)).status == 0
    assert (await cli.refused("import", "gpbackup", fresh, *_GPBACKUP, "--prune")).startswith("8 of this cluster's 10 backups are not in")
    assert len(await _rows(sql)) == 10
    assert "8 removed" in (await cli("import", "gpbackup", fresh, *_GPBACKUP, "--prune", "--prune-any")).stdout


async def test_prune_leaves_the_other_tool_alone(cli: _Cli, sql: Sql, tmp_path: Path) -> None:
    """Pruning by gpbackup's history removes none of WAL-G's backups of the same cluster; a deletion is followed."""
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


async def test_a_clone(cli: _Cli, sql: Sql) -> None:
    """A clone's history has its source's backups: they get ids of the clone, and --since leaves them out, for both tools."""
    await cli("import", "gpbackup", str(_HISTORY), *_GPBACKUP)
    of_c1 = await _rows(sql)
    of_clone = ("--folder-id", "f1", "--cluster-id", "c2")
    gpbackup = ("import", "gpbackup", str(_HISTORY), *of_clone, "--timezone", "Europe/Berlin")
    assert "10 added" in (await cli(*gpbackup)).stdout
    assert [row for row in await _rows(sql) if row[0] == "c1"] == of_c1

    done = await cli(*gpbackup, "--since", "2026-11-05T02:15:00+01:00", "--prune", "--prune-any")
    assert "0 added, 0 changed, 3 unchanged, 7 removed, 11 skipped" in done.stdout
    assert "  7 skipped: completed before --since" in done.stdout
    assert [row[2] for row in await _rows(sql) if row[0] == "c2"] == ["c2:20261105020001", "c2:20261109010001", "c2:20261110010002"]

    done = await cli("import", "walg", str(_LISTING), *of_clone, "--since", "2026-11-22T00:39:40Z")
    assert "2 added, 0 changed, 0 unchanged, 0 removed, 2 skipped" in done.stdout


async def test_backup_dir(cli: _Cli, sql: Sql, tmp_path: Path) -> None:
    """With --backup-dir, a local backup whose directories are all there has its files' size; the others have 0, which is said."""
    for content in range(-1, 8):
        place = tmp_path / f"gpseg{content}/backups/20261104/20261104010002"
        place.mkdir(parents=True)
        (place / "data").write_bytes(b"x" * 100)
    done = await cli("import", "gpbackup", str(_HISTORY), *_GPBACKUP, "--backup-dir", str(tmp_path))
    assert "  5 of size 0: 0 of 9 directories reachable [" in done.stdout
    assert "  4 of size 0: gpbackup records none, and a plugin keeps the files [" in done.stdout
    sizes = await sql.fetch("SELECT id, size FROM backups WHERE size > 0")
    assert [tuple(row) for row in sizes] == [("c1:20261104010002", 900)]


# Status


async def test_status(cli: _Cli) -> None:
    """Each cluster's last backup and last import are shown to the service's role, which can only read; as JSON too."""
    nothing = await cli.status()
    assert (nothing.status, nothing.stdout) == (0, "")
    assert nothing.stderr == "Nothing has been imported into the catalog that this asks for.\n"
    await cli("import", "walg", str(_LISTING), *_C1)
    await cli("import", "gpbackup", str(_HISTORY), "--timezone", "Europe/Berlin", "--folder-id", "f2", "--cluster-id", "c2")

    done = await cli.status()
    header, walg, gpbackup = [line.split() for line in done.stdout.splitlines()]
    assert header == ["FOLDER", "CLUSTER", "TOOL", "LAST", "COMPLETED", "AGE", "DURATION", "SIZE", "BACKUPS", "LAST", "IMPORTED", "AGE"]
    assert walg[:5] == ["f1", "c1", "walg", "2026-11-23", "20:02:11Z"]
    assert gpbackup[:5] == ["f2", "c2", "gpbackup", "2026-11-10", "02:41:20Z"]
    assert len((await cli.status("--folder-id", "f2")).stdout.splitlines()) == 2

    [only] = json.loads((await cli.status("--cluster-id", "c1", "--json")).stdout)["clusters"]
    ages = [only.pop("ageSeconds"), only.pop("importAgeSeconds")]
    assert ages[0] > ages[1] > 0
    assert datetime.now(UTC) - datetime.fromisoformat(only.pop("lastImportedAt")) < timedelta(minutes=10)
    assert only == {
        "folderId": "f1",
        "clusterId": "c1",
        "tool": "walg",
        "lastBackupId": "c9q3vd0k8m1nt5rj2hfe",
        "lastCompletedAt": "2026-11-23T20:02:11.357020Z",
        "durationSeconds": 8551.456203,
        "sizeBytes": 913800120559,
        "backups": 4,
    }


async def test_max_age(cli: _Cli, sql: Sql) -> None:
    """--max-age exits with 2 if a last backup, or a last import, is older, or is dated in the future, or there is none, and says which."""
    assert (await cli.status("--max-age", "26h")).status == 2  # nothing is known of anything
    await cli("import", "walg", str(_LISTING), *_C1)
    await sql.execute("UPDATE imports SET last_created_at = now() - interval '25 hours'")
    young = await cli.status("--max-age", "26h")
    assert (young.status, young.stderr) == (0, "")
    assert json.loads((await cli.status("--max-age", "26h", "--json")).stdout)["clusters"][0]["overdue"] == []

    await sql.execute("UPDATE imports SET last_created_at = now() + interval '25 hours 1 minute'")
    ahead = await cli.status("--max-age", "26h")  # whatever was or was not completed since is not known
    assert (ahead.status, ahead.stderr) == (2, "Overdue: cluster c1, walg: the last backup is dated 1d 1h from now.\n")
    await sql.execute("UPDATE imports SET last_created_at = now() - interval '25 hours'")

    old = await cli.status("--max-age", "24h")
    assert (old.status, old.stderr) == (2, "Overdue: cluster c1, walg: the last backup was completed 1d 1h ago.\n")
    await sql.execute("UPDATE imports SET imported_at = now() - interval '3 days'")
    stale = await cli.status("--max-age", "26h", "--json")
    assert (stale.status, json.loads(stale.stdout)["clusters"][0]["overdue"]) == (2, ["the last import was 3d 0h ago"])
    await sql.execute("UPDATE imports SET imported_at = now(), last_created_at = NULL")
    none = await cli.status("--max-age", "26h")
    assert (none.status, none.stderr) == (2, "Overdue: cluster c1, walg: there is no backup.\n")
    assert (await cli.status("--cluster-id", "misspelt", "--max-age", "26h")).status == 2


@pytest.mark.parametrize("length", ["", "26", "h", "-1h", "1.5h", "1w", "١h", "9999999d"])
async def test_bad_lengths(cli: _Cli, length: str) -> None:
    """What is no length of time is a matter of usage, and never fresh."""
    done = await cli.status("--max-age", length)
    assert (done.status, done.stdout) == (2, "")
    assert "such as 26h" in done.stderr


async def test_status_without_a_database(command: RunCommand) -> None:
    """A database that is not there is 1, so it is not taken for an old backup."""
    done = await command("status", "--max-age", "26h", BACKUPS_DATABASE_URL="postgresql://user:hunter2@127.0.0.1:1/none")
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith("backup-service: cannot connect to 127.0.0.1:1: connection refused")
    assert "hunter2" not in done.stderr


# Forget


async def test_forget(cli: _Cli, sql: Sql) -> None:
    """What would go is named; nothing goes in a dry run, nor where nobody can be asked; with --yes all of it does."""
    await cli("import", "walg", str(_LISTING), *_C1)
    goes = "of cluster c1:\n  folder f1, walg: 4 backups, the last completed 2026-11-23 20:02:11Z, and the record of their import\n"
    assert await cli("forget", "--cluster-id", "c1", "--dry-run") == Done(0, f"This would go {goes}", "")
    asked = await cli("forget", "--cluster-id", "c1")
    assert asked == Done(1, "", f"This will go {goes}backup-service: nothing was removed: --yes, where nobody can be asked\n")
    assert len(await _rows(sql)) == 4
    assert await cli("forget", "--cluster-id", "c1", "--folder-id", "f1", "--yes") == Done(0, f"This has gone {goes}", "")
    assert await _rows(sql) == []
    assert await sql.fetchval("SELECT count(*) FROM imports") == 0
    assert await cli.refused("forget", "--cluster-id", "c1", "--yes") == "the catalog has nothing of cluster c1"


@pytest.mark.parametrize(("answer", "status", "left"), [("y\n", 0, 0), ("n\n", 1, 4), ("\n", 1, 4)])
async def test_forget_asks(cli: _Cli, sql: Sql, import_url: str, answer: str, status: int, left: int) -> None:
    """On a terminal it asks, and only a yes removes anything."""
    await cli("import", "walg", str(_LISTING), *_C1)
    leader, follower = pty.openpty()
    async with processes.running(
        *(sys.executable, "-m", "service", "forget", "--cluster-id", "c1"),
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
    assert len(await _rows(sql)) == left


async def test_a_role_that_may_not_write(command: RunCommand, cli: _Cli, database_url: str, sql: Sql) -> None:
    """With the service's role, what writes fails in one clear line."""
    await cli("import", "walg", str(_LISTING), *_C1)
    for arguments in (("forget", "--cluster-id", "c1", "--yes"), ("import", "gpbackup", str(_HISTORY), *_GPBACKUP)):
        done = await command(*arguments, BACKUPS_DATABASE_URL=database_url)
        assert (done.status, done.stdout) == (1, "")
        reason = "backup-service: The role of BACKUPS_DATABASE_URL may not write to the catalog: permission denied for table "
        assert done.stderr.startswith(reason)
    assert len(await _rows(sql)) == 4


async def test_a_standby_that_takes_no_writes(postgres: EmbeddedPostgres, import_url: str, cli: _Cli, sql: Sql) -> None:
    """A database that is read-only fails an import in one clear line."""
    await sql.execute("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$")
    assert "may not write" in await cli.refused("import", "walg", str(_LISTING), *_C1)


# Help and completion


async def test_exit_statuses_are_documented(command: RunCommand) -> None:
    """`--help` says what exit statuses mean; a wrong command line is 2."""
    done = await command("--help")
    assert "Exit status: 0 done; 1 it failed" in done.stdout
    assert "2 the command line was not understood" in done.stdout
    assert (await command("lsit")).status == 2


async def test_completion(tmp_path: Path) -> None:
    """The script that typer makes for bash completes commands and options."""
    shell = shutil.which("bash")
    assert shell
    script = tmp_path / "completion.sh"
    (tmp_path / "backup-service").symlink_to(ROOT / "backup-service")
    lines = [
        f"_BACKUP_SERVICE_COMPLETE=source_bash backup-service > {script}",
        f". {script}",
        'complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _backup_service_completion "$1"; echo "${COMPREPLY[@]}"; }',
        "complete_words backup-service import gp",
        "complete_words backup-service status --ma",
        "complete -p backup-service",
    ]
    done = await processes.run(shell, "-c", "\n".join(lines), env=environment() | {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    printed = done.stdout.decode().splitlines()
    assert printed[:2] == ["gpbackup", "--max-age"], done.stderr.decode()
    assert "_backup_service_completion" in printed[2]
