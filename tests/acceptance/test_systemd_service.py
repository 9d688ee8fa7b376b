"""The systemd unit of the server."""

import asyncio
import configparser
import json
import os
import shlex
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from service.composition import shutdown_times
from service.process import WATCHDOG_MARGIN
from service.settings import Settings
from tests.support import processes
from tests.support.commands import environment
from tests.support.repository import ROOT

_UNIT = ROOT / "deploy" / "systemd" / "backup-service.service"
_systemd = pytest.mark.debian("systemd", program="systemd-analyze")

# Applies MemoryDenyWriteExecute= as systemd does: PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN. Without effect before Linux 6.3.
_DENY = "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"


def _section() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names of systemd have capitals
    unit.read(_UNIT, encoding="utf-8")
    return unit["Service"]


@_systemd
async def test_unit_is_valid(tmp_path: Path) -> None:
    """systemd-analyze reports no error in the unit."""
    (tmp_path / _UNIT.name).write_bytes(_UNIT.read_bytes())
    done = await processes.run("systemd-analyze", "verify", tmp_path / _UNIT.name)
    assert [line for line in done.stderr.decode().splitlines() if _UNIT.name in line] == []


@_systemd
async def test_sandbox(tmp_path: Path) -> None:
    """systemd-analyze computes an exposure of the unit below 3 of 10."""
    (tmp_path / _UNIT.name).write_bytes(_UNIT.read_bytes())
    done = await processes.run("systemd-analyze", "--offline=yes", "security", "--threshold=29", tmp_path / _UNIT.name)
    assert done.returncode == 0, done.stdout.decode()


def test_stop_timeout() -> None:
    """systemd does not kill a server before its longest shutdown is over and the watchdog has reported."""
    limit = timedelta(seconds=int(_section()["TimeoutStopSec"]))
    assert limit >= shutdown_times(Settings.read(database_url="postgresql://h/d")).longest + WATCHDOG_MARGIN


async def test_command_serves(database_url: str) -> None:
    """The unit's command serves without memory that is writable and executable, and a stop by systemd exits with 0."""
    assert _section()["MemoryDenyWriteExecute"] == "yes"
    settings = {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_LISTEN": "127.0.0.1:0", "BACKUPS_DRAIN_DELAY": "0"}
    env = environment(**settings) | {"PATH": f"{ROOT}:{os.defpath}"}
    command = (sys.executable, "-c", _DENY, *shlex.split(_section()["ExecStart"]))
    async with processes.running(*command, cwd="/", env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        while json.loads(await asyncio.wait_for(process.stdout.readline(), 60))["event"] != "serving":
            pass
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
