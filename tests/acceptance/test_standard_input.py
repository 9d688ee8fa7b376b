"""Imports from standard input, without an installation on Greenplum's hosts."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli.imports.copied_input import COPY_MAX
from tests.support import processes
from tests.support.catalog import Sql
from tests.support.commands import RunCommand, environment
from tests.support.eventually import eventually
from tests.support.gpbackup_history import SAMPLE
from tests.support.repository import ROOT

_OF_C1 = ("--folder-id", "f1", "--cluster-id", "c1")
_GPBACKUP = ("import", "gpbackup", "-", *_OF_C1, "--timezone", "Europe/Berlin")


async def test_documented_pipes(import_url: str, sql: Sql, tmp_path: Path) -> None:
    """The pipes of docs/importing.md, with an `ssh` that runs the command on this machine, import both tools' listings."""
    page = (ROOT / "docs" / "importing.md").read_text(encoding="utf-8")
    [script] = re.findall(r"```sh\n(set -o pipefail\n.*?)```", page, re.DOTALL)
    for name, text in (("ssh", 'shift; exec "$@"'), ("wal-g", f"cat '{ROOT}/samples/walg-backup-list.json'")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = script.replace("/data/master/gpseg-1/gpbackup_history.db", str(SAMPLE))
    env = environment(BACKUPS_DATABASE_URL=import_url) | {"PATH": f"{tmp_path}:{ROOT}:{os.defpath}"}
    done = await processes.run("/bin/bash", "-ec", script, env=env)
    assert done.returncode == 0, done.stderr
    rows = await sql.fetch("SELECT tool, count(*) FROM backups GROUP BY tool")
    assert {row["tool"]: row["count"] for row in rows} == {"gpbackup": 10, "walg": 4}


async def test_copy_is_deleted(command: RunCommand, import_url: str, tmp_path: Path) -> None:
    """The temporary copy is deleted after an import, and after an import that failed."""
    settings = {"BACKUPS_DATABASE_URL": import_url, "TMPDIR": str(tmp_path)}
    assert (await command(*_GPBACKUP, stdin=SAMPLE.read_bytes(), **settings)).status == 0
    done = await command(*_GPBACKUP, stdin=b"text", **settings)
    assert (done.status, list(tmp_path.iterdir())) == (1, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "standard input is empty"),
        (b"backupconfigs:\n", "standard input is gpbackup's history in YAML"),
        (SAMPLE.read_bytes()[:8192], "standard input: the file is damaged or incomplete"),
    ],
    ids=["empty", "yaml", "cut off"],
)
async def test_bad_input(command: RunCommand, import_url: str, content: bytes, message: str) -> None:
    """Input that is empty, in another format or cut off is an error that names standard input."""
    done = await command(*_GPBACKUP, stdin=content, BACKUPS_DATABASE_URL=import_url)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith(f"backup-service: {message}")


async def test_endless_input(import_url: str, tmp_path: Path) -> None:
    """Input above the limit is rejected, and its copy is deleted."""
    env = environment(BACKUPS_DATABASE_URL=import_url, TMPDIR=str(tmp_path))
    with Path("/dev/zero").open("rb") as zeros:
        command = [sys.executable, "-m", "service", *_GPBACKUP]
        done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=env, stdin=zeros, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"backup-service: standard input has more than {COPY_MAX >> 20} MiB")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signal_while_input_is_incomplete(import_url: str, tmp_path: Path, number: int) -> None:
    """A signal ends an import that waits for its input, and the copy is deleted."""
    env = environment(BACKUPS_DATABASE_URL=import_url, TMPDIR=str(tmp_path))
    command = (sys.executable, "-m", "service", *_GPBACKUP)
    async with processes.running(*command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        await eventually(lambda: len(list(tmp_path.glob("*/*"))), 1, timeout_s=60)
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 60) == 1
    assert list(tmp_path.iterdir()) == []
