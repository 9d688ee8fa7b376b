"""The commands of docs/upgrading.md and docs/uninstalling.md that need no container, on a PostgreSQL of their own."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from service import project_files
from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles
from tests.support import processes
from tests.support.catalog import OWNER
from tests.support.commands import environment
from tests.support.ports import free_ports
from tests.support.postgres import run_postgres
from tests.support.repository import ROOT, tracked_files

_UPGRADING = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
_UNINSTALLING = (ROOT / "docs" / "uninstalling.md").read_text(encoding="utf-8")
_INSTALLING = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
_FILES = tracked_files()


def _commands(page: str, program: str) -> list[str]:
    """Return the inline commands of a page that start with a program."""
    return re.findall(rf"`({re.escape(program)} [^`]+)`", page)


@pytest.fixture(name="own_postgres")
def _own_postgres() -> Iterator[EmbeddedPostgres]:
    """Yield a PostgreSQL whose roles and database are those of docs/installing.md."""
    with run_postgres({"fsync": "off"}) as postgres:
        yield postgres


async def _shell(postgres: EmbeddedPostgres, command: str, cwd: Path, **settings: str) -> str:
    """Run a command of a page as an administrator of PostgreSQL, and return its output."""
    path = f"{ROOT}:{postgres.program('psql').parent}:{os.defpath}"
    variables = {"PATH": path, "PGHOST": str(postgres.sockets), "PGUSER": "postgres", "PGDATABASE": "postgres"}
    done = await processes.run("/bin/sh", "-euc", command, cwd=cwd, env=environment(**variables | settings))
    assert done.returncode == 0, (command, done.stderr.decode())
    return done.stdout.decode()


async def test_upgrade_and_removal(own_postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """Roles, migration, backup and checks of the pages work in their order, and the last statements leave no database and no role."""
    [roles] = re.findall(r"^(backup-service roles \| psql)", _INSTALLING, re.MULTILINE)
    await _shell(own_postgres, roles, tmp_path)
    owner = {"BACKUPS_DATABASE_URL": own_postgres.url("backups", user=OWNER)}
    service = {"BACKUPS_DATABASE_URL": own_postgres.url("backups", user=Roles().service)}

    [migrate] = re.findall(r"\*\*Migrate\*\*: `(backup-service migrate)`", _UPGRADING)
    assert "at revision" in await _shell(own_postgres, migrate, tmp_path, **owner)
    [dump] = _commands(_UPGRADING, "pg_dump")
    await _shell(own_postgres, dump, tmp_path)
    listed = await _shell(own_postgres, "pg_restore --list backups.dump", tmp_path)
    assert "TABLE DATA public backups" in listed
    [dry_run] = _commands(_UPGRADING, "backup-service migrate")
    assert "CREATE TABLE backups" in await _shell(own_postgres, dry_run, tmp_path, **owner)
    [status] = re.findall(r"`(backup-service status)`", _UPGRADING)
    await _shell(own_postgres, status, tmp_path, **service)
    await _check_health(own_postgres, tmp_path, **service)

    [removal] = re.findall(r"```sql\n(.*?)```", _UNINSTALLING, re.DOTALL)
    connection = await asyncpg.connect(own_postgres.url("postgres"))
    try:
        for statement in filter(None, map(str.strip, removal.split(";"))):
            await connection.execute(statement)
        remaining = (
            "SELECT datname FROM pg_database WHERE datname = 'backups' UNION ALL SELECT rolname FROM pg_roles WHERE rolname ~ '^backups'"
        )
        assert await connection.fetch(remaining) == []
    finally:
        await connection.close()


async def _check_health(postgres: EmbeddedPostgres, folder: Path, **settings: str) -> None:
    """Check that the page's `health` exits with 0 once the new release serves on the migrated schema."""
    [health] = re.findall(r"`(backup-service health)`", _UPGRADING)
    [port] = free_ports(1)
    address = f"127.0.0.1:{port}"
    serve = environment(BACKUPS_LISTEN=address, BACKUPS_DRAIN_DELAY="0", **settings)
    async with processes.running(
        ROOT / "backup-service", "serve", cwd=folder, env=serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ):
        wait = f"until {health} 2>/dev/null; do sleep 0.1; done"
        assert "SERVING" in await _shell(postgres, wait, folder, BACKUPS_ADDRESS=address)


def test_units_and_files_exist() -> None:
    """The systemd units, the cron file, the make target and the folders that the pages name are those of this repository."""
    [disable] = _commands(_UNINSTALLING, "systemctl disable --now")
    units = [word.strip("'") for word in disable.split()[3:]]
    assert [f"{unit.removesuffix('.service')}.service" for unit in units if ".timer" not in unit] == ["backup-service.service"]
    assert {unit.replace("@*", "@") for unit in units if ".timer" in unit} <= {Path(file).name for file in _FILES}
    [cron] = re.findall(r"`/etc/cron.d/([\w-]+)`", _UNINSTALLING)
    assert f"deploy/cron/{cron}" in _FILES
    [restart] = _commands(_UPGRADING, "systemctl restart")
    assert f"deploy/systemd/{restart.split()[-1]}.service" in _FILES
    for target in re.findall(r"`make ([a-z-]+)`", _UNINSTALLING):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_folders_of_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders that uninstalling.md names are those in which `dev` keeps its data and sockets."""
    [sockets] = re.findall(r"`(/var/tmp/[\w*-]+)`", _UNINSTALLING)
    assert EmbeddedPostgres(Path("/none/.data")).sockets.match(sockets)
    [(installed, clone)] = re.findall(r"the data of `backup-service dev`: `(~/[\w./-]+)`, or `([\w.]+)` in a clone", _UNINSTALLING)
    assert project_files.default_data_folder() == ROOT / clone
    monkeypatch.setattr(project_files, "IS_CLONE", False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert project_files.default_data_folder() == Path(installed).expanduser()


def test_kubernetes_names() -> None:
    """uninstalling.md deletes the overlay and the namespace that deploying-kubernetes.md creates."""
    deploying = (ROOT / "docs" / "deploying-kubernetes.md").read_text(encoding="utf-8")
    [overlay] = _commands(_UNINSTALLING, "kubectl delete -k")
    assert f"kubectl apply -k {overlay.split()[-1]}\n" in deploying
    [namespace] = _commands(_UNINSTALLING, "kubectl delete namespace")
    assert re.search(rf"namespace:? {namespace.split()[-1]}\b", deploying)


@pytest.mark.parametrize(("page", "programs"), [(_UPGRADING, ("pipx", "uv", "pip")), (_UNINSTALLING, ("pipx", "uv", "pip"))])
def test_every_installer_is_covered(page: str, programs: tuple[str, ...]) -> None:
    """Both pages have a command for each way to install the wheel; test_wheel.py runs them."""
    for program in programs:
        assert len(_commands(page, program)) == 1
