"""The wheel, installed with pip, pipx and uv."""

import asyncio
import email
import os
import re
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from service import VERSION
from service.dev.embedded_postgres import EmbeddedPostgres
from service.server import Server
from tests.support import processes
from tests.support.commands import Done, environment
from tests.support.dev import data_folder
from tests.support.repository import ROOT

_HOSTILE = {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONSTARTUP": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"}
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_LISTING = ROOT / "samples" / "walg-backup-list.json"


@pytest.fixture(name="wheel", scope="module")
def _wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from this source tree."""
    folder = tmp_path_factory.mktemp("dist")
    command: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(name="installed", scope="module")
def _installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program in a virtual environment in which pip has installed the wheel. Its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("environment with space")
    venv.create(folder, symlinks=True)
    install: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin" / "python",
        "install",
        "--no-deps",
        "--no-index",
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True)
    _add_dependencies(folder)
    return folder / "bin" / "backup-service"


def _add_dependencies(environment_folder: Path) -> None:
    """Let a virtual environment import the packages of the tests' environment."""
    [packages] = environment_folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))


def _documented(page: str, program: str, wheel: Path) -> list[str]:
    """Return the only command of an installer on a page of docs/, with the path of the wheel."""
    [command] = re.findall(rf"`{program} ([^`]+)`", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    return [str(wheel) if word == "NEW.whl" else word for word in command.split()]


async def _run(program: Path | str, *arguments: object, **settings: str) -> Done:
    done = await processes.run(program, *arguments, cwd="/", env=environment(**_HOSTILE | settings))
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


async def test_content(wheel: Path) -> None:
    """The wheel has one top-level package, with migrations, sample and roles, and a classifier that package indexes reject."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = email.message_from_bytes(archive.read(next(name for name in names if name.endswith("/METADATA"))))
    tracked = subprocess.run(
        [
            "git",
            "ls-files",
            "service",
            "migrations/env.py",
            "migrations/versions",
            "deploy/postgres/roles.sql",
            "samples/walg-backup-list.json",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    expected = {name if name.startswith("service/") else f"service/data/{name}" for name in tracked}
    info = f"greenplum_backup_service-{VERSION}"
    assert {name for name in names if not name.startswith(f"{info}.")} == expected
    assert [name for name in names if name.startswith(f"{info}.data/")] == [f"{info}.data/scripts/backup-service"]
    assert metadata["Version"] == VERSION
    assert metadata["Classifier"] == "Private :: Do Not Upload"
    assert sorted(metadata.get_all("Provides-Extra", [])) == ["dev", "tracing"]


async def test_pip(installed: Path, empty_database_url: str, import_url: str, server: Server, tmp_path: Path) -> None:
    """After an install with pip, the command runs with hostile variables of Python: it migrates, imports, lists, and writes a report."""
    assert await _run(installed, "--version") == Done(0, f"backup-service {VERSION}\n", "")
    assert await _run(installed, "roles") == Done(0, (ROOT / "deploy" / "postgres" / "roles.sql").read_text(encoding="utf-8"), "")
    done = await _run(installed, "migrate", BACKUPS_DATABASE_URL=empty_database_url)
    assert done == Done(0, "The schema is at revision head.\n", "")
    done = await _run(installed, "import", "walg", _LISTING, "--folder-id", "f1", "--cluster-id", "c1", BACKUPS_DATABASE_URL=import_url)
    assert done == Done(0, "Imported cluster c1 into folder f1: 4 added, 0 changed, 0 unchanged, 0 removed, 0 skipped.\n", "")
    listed = await _run(installed, "list", "--folder-id", "f1", BACKUPS_ADDRESS=str(server.address))
    assert (listed.status, listed.stderr, listed.stdout.count("\n")) == (0, "", 5)
    done = await _run(installed, "report", "--output", tmp_path / "report.html", BACKUPS_DATABASE_URL=import_url)
    assert done == Done(0, f"Wrote {tmp_path / 'report.html'}: 1 cluster, 0 with findings.\n", "")


async def test_pip_upgrade_and_removal(wheel: Path, tmp_path: Path) -> None:
    """The documented commands of pip replace the release in a virtual environment, and remove the command."""
    await asyncio.to_thread(venv.create, tmp_path, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--python", tmp_path / "bin" / "python")
    for documented in _documented("upgrading.md", "pip", wheel), _documented("upgrading.md", "pip", wheel):
        done = await processes.run(*pip, *documented, "--no-deps", "--no-index", env=environment())
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "bin" / "backup-service").exists()
    done = await processes.run(*pip, *_documented("uninstalling.md", "pip", wheel), "--yes", env=environment())
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "bin" / "backup-service").exists()


async def test_working_folder(installed: Path, tmp_path: Path) -> None:
    """A package `service` in the working folder is not imported."""
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__main__.py").write_text("raise SystemExit('wrong package')")
    done = await processes.run(installed, "--version", cwd=tmp_path, env=environment(**_HOSTILE, PYTHONSAFEPATH=""))
    assert (done.returncode, done.stderr) == (0, b"")


async def test_dev(installed: Path, tmp_path: Path) -> None:
    """`dev` of an installed wheel serves the sample, stores its data below the user's home, and prints commands that work."""
    with data_folder(name="backup-service") as folder:
        env = environment(**_HOSTILE, BACKUPS_LISTEN="127.0.0.1:0", XDG_DATA_HOME=str(folder.parent))
        env["PATH"] = f"{installed.parent}:{env['PATH']}"
        async with processes.running(installed, "dev", cwd=tmp_path, env=env, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = {}
            while "Stop" not in lines:
                label, _, text = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip().partition(" ")
                lines[label] = text.strip()
            assert lines["Loaded"].startswith("4 backups in folder demo-folder, 4 of them new, from ")
            for label, expected in (("Try", "c9q3vd0k8m1nt5rj2hfe"), ("Import", "already up to date")):
                done = await processes.run("/bin/sh", "-c", lines[label], cwd=tmp_path, env=env)
                assert expected in done.stdout.decode(), done.stderr
            assert lines["Loaded"].endswith(f", data in {EmbeddedPostgres(folder).folder}")
            process.send_signal(2)
            assert await asyncio.wait_for(process.wait(), 30) == 0
        assert list(tmp_path.iterdir()) == []


async def test_uv(wheel: Path, tmp_path: Path) -> None:
    """`uv tool install` puts the command on the user's PATH."""
    uv = Path(sys.executable).parent / "uv"
    overrides = tmp_path / "overrides.txt"  # dependencies that do not apply: nothing is downloaded
    names = [re.match(r"[\w-]+", each) for each in _PROJECT["dependencies"]]
    overrides.write_text("".join(f"{name[0]}; python_version < '3'\n" for name in names if name))
    settings = {
        "UV_TOOL_DIR": f"{tmp_path}/tools",
        "UV_TOOL_BIN_DIR": f"{tmp_path}/bin",
        "UV_OFFLINE": "1",
        "UV_CACHE_DIR": f"{tmp_path}/c",
    }
    command = (uv, "tool", "install", "--overrides", overrides, "--python", sys.executable, wheel)
    done = await processes.run(*command, env=environment(HOME=str(tmp_path), **settings))
    assert done.returncode == 0, done.stderr
    _add_dependencies(tmp_path / "tools" / "greenplum-backup-service")
    assert await _run(tmp_path / "bin" / "backup-service", "--version") == Done(0, f"backup-service {VERSION}\n", "")
    options = ("--overrides", overrides, "--python", sys.executable)
    for documented in (*_documented("upgrading.md", "uv", wheel), *options), _documented("uninstalling.md", "uv", wheel):
        done = await processes.run(uv, *documented, env=environment(HOME=str(tmp_path), **settings))
        assert done.returncode == 0, done.stderr
    assert list((tmp_path / "bin").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_pipx(wheel: Path, tmp_path: Path) -> None:
    """`pipx install`, with the dependencies from the package index, puts the command on the user's PATH."""
    pipx = Path(sys.executable).parent / "pipx"
    settings = {"PIPX_HOME": f"{tmp_path}/home", "PIPX_BIN_DIR": f"{tmp_path}/bin", "PIPX_MAN_DIR": f"{tmp_path}/man"}
    index = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_CERT_"))}
    command = (pipx, "install", "--backend", "pip", "--python", sys.executable, wheel)
    done = await processes.run(*command, env=environment(HOME=str(tmp_path), **settings, **index))
    assert done.returncode == 0, done.stderr
    assert await _run(tmp_path / "bin" / "backup-service", "--version") == Done(0, f"backup-service {VERSION}\n", "")
    upgrade = environment(HOME=str(tmp_path), **settings, **index | {"PIP_NO_DEPS": "1"})  # the dependencies were tested above
    for documented in (
        (*_documented("upgrading.md", "pipx", wheel), "--python", sys.executable),
        _documented("uninstalling.md", "pipx", wheel),
    ):
        done = await processes.run(pipx, *documented, env=upgrade)
        assert done.returncode == 0, done.stderr
    assert list((tmp_path / "bin").iterdir()) == []
