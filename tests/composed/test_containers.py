"""Containers of docker-compose.yml."""

import json
import signal

import asyncpg
import pytest

from service import pb
from tests.acceptance.edge.test_envoy import *  # noqa: F403  # the same tests as with processes
from tests.acceptance.test_hostile_clients import test_floods, test_incomplete_calls_are_closed  # noqa: F401
from tests.composed.containers import Compose, ContainerPostgres
from tests.support.deployment import Deployment
from tests.support.load import under_load
from tests.support.repository import ROOT

pytestmark = pytest.mark.timeout(600)  # the first test builds the images

# Version 2 of control groups, or version 1
_LIMITS = """cd /sys/fs/cgroup
if [ -e memory.max ]; then cat memory.max pids.max cpu.max
else cat memory/memory.limit_in_bytes pids/pids.max; echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us); fi"""

_SAMPLE = (ROOT / "samples" / "walg-backup-list.json").read_bytes()
_IMPORT = ("run", "--rm", "-T", "cli", "import", "walg", "--folder-id", "f1", "--cluster-id", "c1")
_NEWEST = "c9q3vd0k8m1nt5rj2hfe"


async def test_import_and_read(compose: Compose, deployment: Deployment) -> None:
    """`import walg` adds a listing once, and `list` and `get` return it through Envoy, over TLS and with the caller's token."""
    assert "4 added" in await compose.run(*_IMPORT, stdin=_SAMPLE)
    assert "already up to date" in await compose.run(*_IMPORT, stdin=_SAMPLE)
    client = ("run", "--rm", "-T", "--env", f"BACKUPS_TOKEN={deployment.token('f1')}", "cli")
    listed = (await compose.run(*client, "list", "--folder-id", "f1")).splitlines()
    assert len(listed) == 5
    assert listed[1].startswith(_NEWEST)
    assert json.loads(await compose.run(*client, "get", _NEWEST, "--json"))["size"] == "913800120559"


async def test_command_verifies_envoy(compose: Compose, deployment: Deployment) -> None:
    """The command `cli` rejects Envoy's certificate without its authority and with another name, and runs no migration."""
    started = await compose.started("migrate")
    client = ("run", "--rm", "-T", "--env", f"BACKUPS_TOKEN={deployment.token('f1')}")
    for variable, cause in (
        ("BACKUPS_CA_FILE=", "unable to get local issuer certificate"),
        ("BACKUPS_SERVER_NAME=a.example", "Hostname mismatch"),
    ):
        done = await compose.docker("compose", *client, "--env", variable, "cli", "list", "--folder-id", "f1")
        assert done.status == 1
        assert f"the certificate of the service at envoy:8443 was not accepted: {cause}" in done.stderr
    assert await compose.started("migrate") == started


async def test_service_is_read_only(compose: Compose, database_url: str) -> None:
    """The service's user is not root, its file system is read-only, and its database role only reads."""
    assert (await compose.run("exec", "-T", "service", "id", "-u")).strip() == "10001"
    for file in ("/app/x", "/tmp/x"):
        touched = await compose.docker("compose", "exec", "-T", "service", "touch", file)
        assert (touched.status, "Read-only file system" in touched.stderr) == (1, True)
    connection = await asyncpg.connect(database_url, server_settings={"default_transaction_read_only": "off"})
    try:
        assert await connection.fetchval("SELECT count(*) FROM backups") == 0
        for statement in ("DELETE FROM backups", "CREATE TABLE x ()", "TRUNCATE imports"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize("service", ["postgres", "service", "envoy"])
async def test_containers_are_confined(compose: Compose, service: str) -> None:
    """Every process runs without capabilities, with `no-new-privileges`, not as root, on a read-only file system."""
    status = await compose.run("exec", "-T", service, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapPrm", "CapEff", "CapBnd")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert "0" not in fields["Uid"].split()
    touched = await compose.docker("compose", "exec", "-T", service, "touch", "/x")
    assert "Read-only file system" in touched.stderr


@pytest.mark.parametrize("service", ["postgres", "service", "envoy"])
async def test_containers_are_limited(compose: Compose, service: str) -> None:
    """The kernel limits memory, processes and CPU of every container."""
    memory, pids, cpu = (await compose.run("exec", "-T", service, "sh", "-c", _LIMITS)).splitlines()
    assert 0 < int(memory) <= 1 << 30
    assert 0 < int(pids) <= 200
    assert cpu == "100000 100000"


@pytest.mark.parametrize("python", ["python", "/app/.venv/bin/python"])
@pytest.mark.parametrize("module", ["pip", "ensurepip", "setuptools", "wheel", "hatchling"])
async def test_image_has_no_installer(compose: Compose, python: str, module: str) -> None:
    """The image contains no package installer."""
    imported = await compose.docker("compose", "exec", "-T", "service", python, "-c", f"import {module}")
    assert f"No module named '{module}'" in imported.stderr


async def test_image_has_no_compiler(compose: Compose) -> None:
    """The image contains no compiler, linker or build tool."""
    tools = ("cc", "gcc", "g++", "c++", "clang", "tcc", "ld", "as", "make", "cmake", "cargo", "rustc", "go", "pip", "pip3")
    found = await compose.docker("compose", "exec", "-T", "service", "sh", "-c", f"command -v {' '.join(tools)}")
    assert found.stdout == ""


async def test_each_container_has_its_own_password(compose: Compose) -> None:
    """The superuser and every role have different passwords, and the service's container can read only its own."""
    passwords = await compose.passwords()
    assert sorted(passwords) == ["backups_import", "backups_owner", "backups_service", "postgres"]
    assert len(set(passwords.values())) == 4
    assert all(len(password) == 64 for password in passwords.values())
    readable = await compose.run("exec", "-T", "service", "sh", "-c", "cat /run/secrets/*/pgpass")
    assert readable.strip().split(":")[3:] == ["backups_service", passwords["backups_service"]]
    environment = await compose.run("exec", "-T", "service", "env")
    assert not [password for password in passwords.values() if password in environment]


async def test_only_roles_connect_over_tls(compose: Compose, postgres: ContainerPostgres) -> None:
    """PostgreSQL rejects plaintext, the superuser, and the password of another role."""
    passwords = await compose.passwords()
    url = postgres.url("backups", user="backups_service")
    await (await asyncpg.connect(url)).close()
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="no encryption"):
        await asyncpg.connect(url.replace("sslmode=require", "sslmode=disable"))
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="no pg_hba.conf entry"):
        await asyncpg.connect(postgres.url("backups", user="postgres"))
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(url, password=passwords["backups_import"])


async def test_the_service_verifies_postgresql(compose: Compose) -> None:
    """The service's session is encrypted, and it rejects a certificate of another authority."""
    query = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'backups_service'"
    assert (await compose.run("exec", "-T", "postgres", "psql", "-At", "-c", query)).strip() == "t"
    url = "postgresql://backups_service@postgres/backups?sslmode=verify-full&passfile=/run/secrets/service/pgpass"
    status = await compose.docker("compose", "exec", "-T", "--env", f"BACKUPS_DATABASE_URL={url}", "service", "backup-service", "status")
    assert status.status == 1
    assert "the certificate is not trusted" in status.stderr


async def test_envoy_is_unhealthy_without_tls(compose: Compose, deployment: Deployment) -> None:
    """Envoy is unhealthy if it cannot read its key, although it runs and serves plaintext."""
    key = deployment.certificate.key
    mode = key.stat().st_mode
    key.chmod(0o600)  # as OpenSSL creates it
    try:
        started = await compose.docker("compose", "up", "--wait", "--no-deps", "--force-recreate", "--wait-timeout", "90", "envoy")
        assert started.status == 1
        assert "unhealthy" in started.stderr
    finally:
        key.chmod(mode)
        await compose.run("up", "--wait", "--no-deps", "--force-recreate", "envoy")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_replicas_are_restarted_in_turn(deployment: Deployment, number: signal.Signals) -> None:
    """No call fails while the containers are stopped in turn."""
    outcomes = await under_load(deployment, lambda: deployment.restart_in_turn(number))
    assert outcomes.codes == {"OK", "HTTP 200"}


async def test_recovers_from_a_restart_of_postgresql(compose: Compose, deployment: Deployment) -> None:
    """After a restart of PostgreSQL, the replicas answer again without a restart."""
    await compose.run("restart", "postgres")
    await deployment.until_healthy(2)
    async with deployment.channel() as channel:
        await pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="f1"), timeout=10)


async def test_stop(compose: Compose, deployment: Deployment) -> None:
    """`docker compose stop` stops each replica with status 0, and `start` makes them healthy again."""
    await compose.run("stop", "service")
    codes = await compose.run("ps", "--all", "--format", "{{.ExitCode}}", "service")
    assert set(codes.split()) == {"0"}
    await compose.run("start", "service")
    await deployment.until_healthy(2)
