"""The examples of scheduled imports in deploy/, whose command lines are run, and concurrent imports of one cluster."""

import asyncio
import configparser
import re
import shlex
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.postgres.session import lock_cluster
from tests.support import processes
from tests.support.catalog import Sql
from tests.support.commands import Done, RunCommand, environment
from tests.support.eventually import eventually
from tests.support.repository import ROOT

_DEPLOY = ROOT / "deploy"
_IDS = {"FOLDER_ID": "folder 1", "CLUSTER_ID": "c$1"}  # the space and the $ reveal missing quotes
_LISTING = ROOT / "samples" / "walg-backup-list.json"
_HISTORY = ROOT / "samples" / "gpbackup_history.db"


@pytest.fixture(name="programs")
def _programs(tmp_path: Path) -> Path:
    """Return a folder for PATH with `backup-service`, and a `wal-g` that prints the sample and logs on standard error, as WAL-G does."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "backup-service").symlink_to(ROOT / "backup-service")
    _program(
        programs / "wal-g", f"echo 'INFO: 2026/11/20 09:00:00.000001 Using storages: [default]' >&2\ncat {shlex.quote(str(_LISTING))}\n"
    )
    return programs


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


async def _run(*command: str, programs: Path, **settings: str) -> Done:
    done = await processes.run(*command, env=environment(**settings) | {"PATH": f"{programs}:/usr/bin:/bin"})
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


async def _imported(sql: Sql) -> list[tuple[Any, ...]]:
    return [
        tuple(row)
        for row in await sql.fetch("SELECT folder_id, source_cluster_id, tool, sum(backups)::bigint FROM freshness GROUP BY 1, 2, 3")
    ]


def _unit(name: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names of systemd have capitals
    unit.read(_DEPLOY / "systemd" / name, encoding="utf-8")
    return unit


async def test_systemd(import_url: str, sql: Sql, programs: Path) -> None:
    """The command of the systemd unit imports the output of WAL-G, and fails if WAL-G or the import fails."""
    start = _unit("backup-import-walg@.service")["Service"]["ExecStart"]
    assert not re.search(r"%|(?<!\$)\$(?!\$)", start)  # systemd would replace these
    command = shlex.split(start.replace("$$", "$"))

    done = await _run(*command, programs=programs, BACKUPS_DATABASE_URL=import_url, **_IDS)
    assert (done.status, done.stdout) == (
        0,
        "Imported cluster c$1 into folder folder 1: 4 added, 0 changed, 0 unchanged, 0 removed, 0 skipped.\n",
    )
    assert await _imported(sql) == [("folder 1", "c$1", "walg", 4)]

    _program(programs / "wal-g", f"cat {shlex.quote(str(_LISTING))}; exit 1")
    assert (await _run(*command, programs=programs, BACKUPS_DATABASE_URL=import_url, **_IDS)).status == 1
    _program(programs / "wal-g", "exit 0")
    done = await _run(*command, programs=programs, BACKUPS_DATABASE_URL=import_url, **_IDS)
    assert done.status == 1
    assert "the input is empty" in done.stderr


_systemd = pytest.mark.debian("systemd", program="systemd-analyze")


def _copy_units(folder: Path) -> None:
    for name in ("service", "timer"):
        shutil.copy(_DEPLOY / f"systemd/backup-import-walg@.{name}", folder / f"backup-import-walg@c1.{name}")


@_systemd
async def test_systemd_units(programs: Path, tmp_path: Path) -> None:
    """systemd-analyze reports no error in the units, and the timer runs every quarter of an hour."""
    assert _unit("backup-import-walg@.timer")["Timer"]["OnCalendar"] == "*:0/15"
    _copy_units(tmp_path)
    done = await _run("systemd-analyze", "verify", str(tmp_path / "backup-import-walg@c1.timer"), programs=programs)
    assert [line for line in done.stderr.splitlines() if "backup-import-walg" in line] == []


@_systemd
async def test_systemd_sandbox(programs: Path, tmp_path: Path) -> None:
    """systemd-analyze computes an exposure of the unit below 3 of 10."""
    _copy_units(tmp_path)
    unit = str(tmp_path / "backup-import-walg@c1.service")
    done = await _run("systemd-analyze", "--offline=yes", "security", "--threshold=29", unit, programs=programs)
    assert done.status == 0, done.stdout


async def test_import_without_writable_executable_memory(import_url: str, sql: Sql, programs: Path) -> None:
    """The import runs under MemoryDenyWriteExecute=, which the kernel applies to the process and its children."""
    assert _unit("backup-import-walg@.service")["Service"]["MemoryDenyWriteExecute"] == "yes"
    deny = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None); "
        "libc.prctl(65, 1, 0, 0, 0); "  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN: without effect before Linux 6.3
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    command = ("backup-service", "import", "walg", str(_LISTING), "--folder-id", "f1", "--cluster-id", "c1")
    done = await _run(sys.executable, "-c", deny, *command, programs=programs, BACKUPS_DATABASE_URL=import_url)
    assert (done.status, done.stderr) == (0, "")
    assert await _imported(sql) == [("f1", "c1", "walg", 4)]


async def test_cron(import_url: str, sql: Sql, programs: Path, tmp_path: Path) -> None:
    """The crontab's command imports gpbackup's history and prints nothing; cron mails the error of a failed import."""
    [line] = [line for line in (_DEPLOY / "cron/backup-import-gpbackup").read_text().splitlines() if line.startswith("*")]
    *times, user, command = line.split(maxsplit=6)
    assert (times, user) == (["*/15", "*", "*", "*", "*"], "gpadmin")
    assert "%" not in command  # cron would end the line there
    settings = {"BACKUPS_DATABASE_URL": import_url, "CLUSTER_TIMEZONE": "Europe/Berlin", "HISTORY": str(_HISTORY)} | _IDS
    file = tmp_path / "an.env"
    file.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()))
    command = command.replace("/etc/backup-service/gpbackup.env", shlex.quote(str(file)))

    assert await _run("/bin/sh", "-c", command, programs=programs) == Done(0, "", "")
    assert await _imported(sql) == [("folder 1", "c$1", "gpbackup", 10)]

    file.write_text(file.read_text().replace(str(_HISTORY), "/none/h.db"))
    assert await _run("/bin/sh", "-c", command, programs=programs) == Done(1, "", "backup-service: /none/h.db: No such file or directory\n")


async def test_kubernetes(import_url: str, sql: Sql, programs: Path, tmp_path: Path) -> None:
    """The containers of the CronJob, run in order, import the output of WAL-G; the job fails if WAL-G fails."""
    _account, job, _policy = yaml.safe_load_all((_DEPLOY / "kubernetes/import-walg.yaml").read_text())
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [lists], [imports] = pod["initContainers"], pod["containers"]
    assert {mount["name"] for each in (lists, imports) for mount in each["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {each["name"] for each in imports["env"]} == {"FOLDER_ID", "CLUSTER_ID", "BACKUPS_DATABASE_URL"}

    def here(argument: str) -> str:
        """Replace $(NAME) as the kubelet does, and the volume by a folder of the test."""
        return re.sub(r"\$\((\w+)\)", lambda name: _IDS[name[1]], argument).replace("/listing/", f"{tmp_path}/")

    assert (await _run(*map(here, lists["command"]), programs=programs)).status == 0
    done = await _run("backup-service", *map(here, imports["args"]), programs=programs, BACKUPS_DATABASE_URL=import_url)
    assert done.status == 0, done.stderr
    assert await _imported(sql) == [("folder 1", "c$1", "walg", 4)]

    _program(programs / "wal-g", "echo ERROR >&2; exit 1")
    assert (await _run(*map(here, lists["command"]), programs=programs)).status == 1


async def test_two_imports_of_one_cluster_at_once(command: RunCommand, import_url: str, sql: Sql) -> None:
    """Concurrent imports of one cluster, by any tool, wait for each other before they read its rows, and all succeed."""
    to = ("--folder-id", "f1", "--cluster-id", "c1")
    async with sql.transaction():
        await lock_cluster(sql, "c1")
        running = [
            asyncio.ensure_future(command("import", *arguments, *to, BACKUPS_DATABASE_URL=import_url))
            for arguments in (
                ("walg", str(_LISTING)),
                ("walg", str(_LISTING), "--prune"),
                ("gpbackup", str(_HISTORY), "--timezone", "Europe/Berlin"),
            )
        ]
        await eventually(lambda: sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"), 3, timeout_s=50)
        assert await sql.fetchval("SELECT count(*) FROM backups") == 0
    done = await asyncio.gather(*running)
    assert [each.status for each in done] == [0, 0, 0]
    added = sorted(re.findall(r": (\d+) added", "".join(each.stdout for each in done)), key=int)
    assert added == ["0", "4", "10"]
    assert await sql.fetchval("SELECT count(*) FROM backups") == 14
