"""Commands with hostile arguments, environments and standard streams."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from service.server import Server
from tests.support import processes
from tests.support.catalog import Sql
from tests.support.command_server import GRPC
from tests.support.commands import environment
from tests.support.dev import data_folder
from tests.support.eventually import eventually
from tests.support.ports import free_ports
from tests.support.repository import ROOT

_SCRIPT = str(ROOT / "backup-service")
_LISTING = ROOT / "samples" / "walg-backup-list.json"
_HISTORY = str(ROOT / "samples" / "gpbackup_history.db")
_C1 = ("--folder-id", "f1", "--cluster-id", "c1")

# In this order each one succeeds.
_COMMANDS = {
    "import walg": ("import", "walg", str(_LISTING), *_C1),
    "import gpbackup": ("import", "gpbackup", _HISTORY, *_C1, "--timezone", "Europe/Berlin"),
    "status": ("status",),
    "list": ("list", "--folder-id", "f1"),
    "get": ("get", "c9q3vd0k8m1nt5rj2hfe"),
    "health": ("health",),
    "migrate": ("migrate", "--dry-run"),
    "remove-cluster": ("remove-cluster", "--cluster-id", "c1", "--yes"),
}


async def test_hostile_arguments(import_url: str, server: Server) -> None:
    """No value of any option or argument of any command ends in a traceback."""
    settings = {"BACKUPS_DATABASE_URL": import_url, "BACKUPS_ADDRESS": str(server.address)}
    done = await processes.run(sys.executable, "-m", "tests.support.hostile_arguments", cwd=ROOT, env=environment(**settings))
    *failures, runs = done.stdout.decode(errors="replace").splitlines()
    assert failures == [], done.stderr.decode(errors="replace")
    assert int(runs.split()[0]) > 500


# Each of these breaks `python -m service` or a plain Python program, or would lead a client of PostgreSQL or gRPC elsewhere.
_HOSTILE = {
    "PYTHONHOME": "/none",
    "PYTHONPATH": "{tmp}",
    "PYTHONSTARTUP": "/none",
    "PYTHONWARNINGS": "error",
    "PYTHONUTF8": "9",
    "PYTHONIOENCODING": "none",
    "PYTHONOPTIMIZE": "2",
    "PYTHONINSPECT": "1",
    "PYTHONSAFEPATH": "",
    "PGHOST": "none.invalid",
    "PGPORT": "1",
    "PGUSER": "none",
    "PGPASSWORD": "none",
    "PGDATABASE": "none",
    "PGSERVICE": "none",
    "PGSSLMODE": "none",
    "PGSSLROOTCERT": "/none",
    "PGPASSFILE": "/",
    "PGOPTIONS": "-c none=1",
    "PGTARGETSESSIONATTRS": "none",
    "PGTZ": "none",
    "PGCONNECT_TIMEOUT": "none",
    "PGAPPNAME": "none",
    "PGGSSLIB": "none",
    "PGKRBSRVNAME": "none",
    **dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:1"),
    "GRPC_DNS_RESOLVER": "none",
    "GRPC_ENABLE_FORK_SUPPORT": "true",
    "LC_ALL": "xx_XX.none",
    "LANG": "none",
    "LANGUAGE": "none",
    "TZ": "/none",
    "TERM": "dumb",
    "NO_COLOR": "1",
    "COLUMNS": "none",
}


def _hostile(tmp_path: Path) -> dict[str, str]:
    """Return the variables, with a folder in PYTHONPATH whose modules would replace those of the standard library."""
    for name in ("json", "typing", "service"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hostile module')\n")
    return {name: value.format(tmp=tmp_path) for name, value in _HOSTILE.items()}


async def test_hostile_environment(import_url: str, server: Server, tmp_path: Path) -> None:
    """Every command works with hostile variables, without HOME, and in a folder whose modules would replace the standard library's."""
    variables = {"PATH": os.defpath, "BACKUPS_DATABASE_URL": import_url, "BACKUPS_ADDRESS": str(server.address)} | _hostile(tmp_path)
    plain = await processes.run(sys.executable, "-c", "print()", cwd=tmp_path, env=variables)
    assert plain.returncode != 0, "these variables break a plain Python program"
    for name, arguments in _COMMANDS.items():
        done = await processes.run(_SCRIPT, *arguments, cwd=tmp_path, env=variables)
        assert (done.returncode, done.stderr) == (0, b""), name


@contextlib.asynccontextmanager
async def _serving(*arguments: str, cwd: Path, env: dict[str, str]) -> AsyncIterator[processes.Process]:
    """Run a server until the block ends, which must stop it with status 0."""
    async with processes.running(_SCRIPT, *arguments, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_serve_in_a_hostile_environment(database_url: str, import_url: str, tmp_path: Path) -> None:
    """`serve` starts with hostile variables and without HOME, answers calls from its database, and stops with status 0."""
    [port] = free_ports(1)
    variables = {"PATH": os.defpath, "BACKUPS_ADDRESS": f"127.0.0.1:{port}"} | _hostile(tmp_path)
    imported = await processes.run(_SCRIPT, *_COMMANDS["import walg"], cwd=tmp_path, env=variables | {"BACKUPS_DATABASE_URL": import_url})
    assert imported.returncode == 0, imported.stderr
    settings = {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_LISTEN": f"127.0.0.1:{port}", "BACKUPS_DRAIN_DELAY": "0"}

    async def status() -> int:
        return (await processes.run(_SCRIPT, "health", cwd=tmp_path, env=variables)).returncode

    async with _serving("serve", cwd=tmp_path, env=variables | settings):
        await eventually(status, 0, timeout_s=30)
        listed = await processes.run(_SCRIPT, *_COMMANDS["list"], cwd=tmp_path, env=variables)
        assert (listed.returncode, listed.stderr, listed.stdout.count(b"\n")) == (0, b"", 5)


async def test_dev_in_a_hostile_environment(tmp_path: Path) -> None:
    """`dev` starts its own PostgreSQL with hostile variables, and the command that it prints lists the sample."""
    with data_folder() as folder:
        variables = {"PATH": f"{ROOT}:{os.defpath}", "BACKUPS_LISTEN": "127.0.0.1:0", "BACKUPS_DATA_FOLDER": str(folder)} | _hostile(
            tmp_path
        )
        async with _serving("dev", cwd=tmp_path, env=variables) as process:
            assert process.stdout
            lines: dict[bytes, bytes] = {}
            async with asyncio.timeout(60):
                while b"Stop" not in lines:
                    label, _, text = (await process.stdout.readline()).strip().partition(b" ")
                    assert label, "dev exited"
                    lines[label] = text.strip()
            listed = await processes.run("/bin/sh", "-c", lines[b"Try"].decode(), cwd=ROOT, env=variables)
            assert (listed.returncode, listed.stderr, listed.stdout.count(b"\n")) == (0, b"", 5)


_HTTP_CLIENT = """
import http.server, threading, urllib.request
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/")
"""

# Plain Python programs, and the variables whose hostile values break each of them.
_PLAIN = {
    "import json": ["PYTHONHOME", "PYTHONPATH", "PYTHONUTF8", "PYTHONIOENCODING"],
    "import warnings; warnings.warn('w')": ["PYTHONWARNINGS"],
    "def f(): 'Usage.'\nf.__doc__.split()": ["PYTHONOPTIMIZE"],
    "import asyncio, asyncpg; asyncio.run(asyncpg.connect())": [
        "PGHOST",
        "PGPORT",
        "PGUSER",
        "PGDATABASE",
        "PGSSLMODE",
        "PGTARGETSESSIONATTRS",
    ],
    _HTTP_CLIENT: ["http_proxy", "HTTP_PROXY"],
    "import os, grpc; grpc.channel_ready_future(grpc.insecure_channel(os.environ['ADDRESS'])).result(5)": ["grpc_proxy", "https_proxy"],
    "import locale; locale.setlocale(locale.LC_ALL, '')": ["LC_ALL", "LANG"],
    "import os, zoneinfo; zoneinfo.ZoneInfo(os.environ.get('TZ', 'UTC'))": ["TZ"],
    "import os; int(os.environ.get('COLUMNS', 80))": ["COLUMNS"],
    "import os; os.environ['HOME']": [],
}


@pytest.fixture(name="plain_environment")
async def _plain_environment(database_url: str, server: Server) -> dict[str, str]:
    """Return variables with which all plain programs work."""
    url = urlsplit(database_url)
    query = parse_qs(url.query)
    return {
        "PATH": os.defpath,
        "HOME": "/",
        "PGUSER": url.username or "",
        "PGDATABASE": url.path.removeprefix("/"),
        "PGHOST": query["host"][0],
        "PGPORT": query["port"][0],
        "ADDRESS": str(server.address),
    }


@pytest.mark.parametrize(("program", "variables"), _PLAIN.items())
async def test_hostile_values_break_plain_programs(
    plain_environment: dict[str, str], tmp_path: Path, program: str, variables: list[str]
) -> None:
    """Each hostile value alone breaks a plain Python program that works without it."""
    plain = await processes.run(sys.executable, "-c", program, env=plain_environment)
    assert plain.returncode == 0, plain.stderr
    for variable in variables:
        done = await processes.run(sys.executable, "-c", program, env=plain_environment | {variable: _hostile(tmp_path)[variable]})
        assert done.returncode != 0, variable
    if "HOME" in program:
        assert (await processes.run(sys.executable, "-c", program, env={"PATH": os.defpath})).returncode != 0


@pytest.mark.parametrize("variable", ["PYTHONHOME", "PYTHONPATH"])
async def test_variables_of_python(tmp_path: Path, variable: str) -> None:
    """A single variable of Python that breaks a plain Python program does not break the command."""
    variables = {"PATH": os.defpath, variable: _hostile(tmp_path)[variable]}
    assert (await processes.run(sys.executable, "-c", "import json", env=variables)).returncode != 0
    done = await processes.run(_SCRIPT, "--version", env=variables)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("others", ["", ":/usr/lib", ":/none with space:/usr/lib*"])
async def test_libraries_of_greenplum(tmp_path: Path, others: str) -> None:
    """Libraries of Greenplum in LD_LIBRARY_PATH, which stop a plain Python program, do not stop the command; other folders are kept."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libm.so.6").write_text("not a library\n")
    variables = {"PATH": os.defpath, "GPHOME": str(tmp_path), "LD_LIBRARY_PATH": f"{tmp_path}/lib{others}:{tmp_path}"}
    assert (await processes.run(sys.executable, "-c", "import math", env=variables)).returncode != 0
    done = await processes.run(_SCRIPT, "--version", env=variables)
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "bin").mkdir()
    installed, python = shutil.copy(_SCRIPT, tmp_path / "bin"), tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf %s "${LD_LIBRARY_PATH-}"\n')
    python.chmod(0o755)
    kept = await processes.run(installed, env=variables)
    assert kept.stdout.decode() == others.removeprefix(":")


# Redirections of a shell: of standard input, standard output and standard error.
_STREAMS = {
    "closed input": ("<&-", 0),
    "closed output": (">&-", 0),
    "closed error": ("2>&-", 0),
    "all closed": ("<&- >&- 2>&-", 0),
    "full output": (">/dev/full", 1),
    "full error": ("2>/dev/full", 0),
    "both full": (">/dev/full 2>/dev/full", 1),
}


@pytest.mark.parametrize("name", _STREAMS)
async def test_standard_streams(import_url: str, server: Server, tmp_path: Path, name: str) -> None:
    """Closed streams change neither the work nor the status of a command; a full standard output is one line and status 1."""
    redirection, status = _STREAMS[name]
    settings = environment(BACKUPS_DATABASE_URL=import_url, BACKUPS_ADDRESS=str(server.address), **GRPC)
    file = tmp_path / "statuses"
    program = (sys.executable, "-m", "tests.support.commands_in_turn", file, *map(json.dumps, _COMMANDS.values()))
    done = await processes.run("/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *program, cwd=ROOT, env=settings)
    message = b"backup-service: standard output: No space left on device\n" if redirection == ">/dev/full" else b""
    assert (done.returncode, done.stderr) == (0, message * len(_COMMANDS))
    assert dict(zip(_COMMANDS, json.loads(file.read_bytes()), strict=True)) == dict.fromkeys(_COMMANDS, status)


async def test_statuses_with_a_full_standard_error(import_url: str) -> None:
    """A message that cannot be printed does not change the exit status."""
    run = f'exec "{sys.executable}" -m service "$@" 2>/dev/full'
    settings = environment(BACKUPS_DATABASE_URL=import_url)
    for status, arguments in ((2, ("status", "--max-age", "1h")), (2, ("lsit",)), (1, ("list", "--folder-id", "f", "--address", "none"))):
        done = await processes.run("/bin/sh", "-c", run, "sh", *arguments, cwd=ROOT, env=settings)
        assert (done.returncode, done.stdout) == (status, b"")


@pytest.mark.parametrize(
    "listing", [b"\xff\xfe[\x00]\x00", b"\x00" * 100, b"[" * 100_000, b'[{"Name": "\xff"}]', b"\x1f\x8b\x08" + b"x" * 50]
)
async def test_input_that_is_not_json(import_url: str, listing: bytes) -> None:
    """Input that is not UTF-8, or not JSON, is an error without a traceback."""
    settings = environment(BACKUPS_DATABASE_URL=import_url)
    done = await processes.run(sys.executable, "-m", "service", "import", "walg", *_C1, cwd=ROOT, env=settings, stdin=listing)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"backup-service: ")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupt_while_waiting_for_input(import_url: str, sql: Sql, number: signal.Signals) -> None:
    """The first signal ends an import that waits for input, and nothing is imported."""
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'backup-service import'"
    reader, writer = os.pipe()
    try:
        async with processes.running(
            *(sys.executable, "-m", "service", "import", "walg", *_C1),
            cwd=ROOT,
            env=environment(BACKUPS_DATABASE_URL=import_url),
            stdin=reader,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            os.write(writer, _LISTING.read_bytes()[:100])
            await eventually(lambda: sql.fetchval(sessions), 1, timeout_s=30)
            process.send_signal(number)
            assert await asyncio.wait_for(process.wait(), 10) != 0
            assert process.stderr
            assert b"Traceback" not in await process.stderr.read()
    finally:
        os.close(reader)
        os.close(writer)
    await eventually(lambda: sql.fetchval(sessions), 0)
    assert await sql.fetchval("SELECT count(*) FROM backups") == 0
