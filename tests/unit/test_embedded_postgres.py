"""Errors of the embedded PostgreSQL, with other programs instead of the server."""

import importlib.util
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.dev import embedded_postgres
from service.dev.embedded_postgres import EmbeddedPostgres, server_user
from service.errors import EmbeddedPostgresError
from tests.support.postgres import temporary_folder

# Reports that it accepts connections, and ignores the signal of a shutdown.
_SERVER = """#!/bin/sh
trap '' INT
printf '1\\nready\\n' > "$2/postmaster.pid"
sleep 1
"""


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    """Yield a folder that the user of the server can enter."""
    with temporary_folder() as folder:
        yield folder


@pytest.fixture(name="as_current_user")
def _as_current_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server run as the current user, even as root."""
    monkeypatch.setattr(embedded_postgres, "server_user", lambda: pwd.getpwuid(os.getuid()))


def test_failed_program(folder: Path) -> None:
    """The error of a program that failed has its name and the end of its output. It runs as the user of the server."""
    postgres = EmbeddedPostgres(folder, programs=Path("/bin"))
    with pytest.raises(EmbeddedPostgresError, match=f"^sh failed: {server_user().pw_uid}$"):
        postgres.run("sh", "-c", "id -u; exit 1")


@pytest.mark.usefixtures("as_current_user")
def test_current_user(folder: Path) -> None:
    """If the current user may run the server, it needs no other user, and no other folder."""
    folder.chmod(0o700)
    postgres = EmbeddedPostgres(folder / "data", programs=Path("/bin"))
    assert postgres.folder == folder / "data"
    with pytest.raises(EmbeddedPostgresError, match=f"^sh failed: {os.getuid()}$"):
        postgres.run("sh", "-c", "id -u; exit 1")


def test_folder_of_another_user(folder: Path) -> None:
    """A symbolic link instead of a folder, which another user could have created, is rejected."""
    (folder / "link").symlink_to(folder)
    with pytest.raises(EmbeddedPostgresError, match="/link belongs to another user$"):
        EmbeddedPostgres(folder).own(folder / "link")


def test_another_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start over the data folder of a server that keeps running fails, and leaves that server alone."""
    monkeypatch.setattr(embedded_postgres, "_STOP_TIMEOUT_S", 0.1)
    postgres = EmbeddedPostgres(folder)
    postgres.data.mkdir()
    with subprocess.Popen(["/bin/sleep", "60"], cwd=postgres.data) as other:
        (postgres.data / "postmaster.pid").write_text(f"{other.pid}\n")
        with pytest.raises(EmbeddedPostgresError, match=f"another PostgreSQL, process {other.pid}, already runs on {postgres.data}"):
            postgres.start()
        assert other.poll() is None
        other.kill()


def test_server_that_does_not_stop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a server that does not stop in time names its log. A server that is not running needs no shutdown."""
    monkeypatch.setattr(embedded_postgres, "_STOP_TIMEOUT_S", 0.1)
    (folder / "postgres").write_text(_SERVER)
    (folder / "postgres").chmod(0o755)
    postgres = EmbeddedPostgres(folder, programs=folder)
    postgres.own(postgres.data)
    postgres.start()
    server = postgres._server
    assert server
    with pytest.raises(EmbeddedPostgresError, match=f"^PostgreSQL did not stop within 0.1 s: see {postgres.log}$"):
        postgres.stop()
    postgres.stop()
    server.wait(30)


def test_user_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server runs as the current user. For root, that is another user, and its absence is an error."""
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(os, "getuid", lambda: nobody.pw_uid)
    assert server_user() == nobody
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert server_user().pw_uid != 0

    def unknown(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", unknown)
    with pytest.raises(EmbeddedPostgresError, match="there is no user `postgres` or `nobody`"):
        server_user()


@pytest.mark.parametrize("has_proc", [True, False])
def test_servers_of_data_folders(folder: Path, monkeypatch: pytest.MonkeyPatch, *, has_proc: bool) -> None:
    """A process whose working folder is the data folder may be its server, and one that has exited is not. Neither needs /proc."""
    with subprocess.Popen(["/bin/sleep", "60"], cwd=folder) as process:
        if not has_proc:
            monkeypatch.setattr(Path, "exists", lambda _: False)
        assert embedded_postgres._has_working_folder(process.pid, folder)
        process.kill()
        process.wait()
        assert not embedded_postgres._has_working_folder(process.pid, folder)


def test_no_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the programs are not installed, the error names the package and the alternatives."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedPostgresError, match=r"the package embedded-postgres is not installed: .*BACKUPS_DATABASE_URL"):
        EmbeddedPostgres(folder)
