"""The composed containers as their users run them."""

import json
import signal

import asyncpg
import pytest

from service import pb
from tests.acceptance.test_envoy import *  # noqa: F403  # the same checks as with processes
from tests.acceptance.test_hostile_clients import test_floods, test_half_done_calls_are_ended  # noqa: F401
from tests.acceptance.test_restarts import restarted_in_turn
from tests.composed.containers import Compose
from tests.support.deployment import Deployment
from tests.support.load import under_load
from tests.support.repository import ROOT

_SAMPLE = (ROOT / "samples" / "walg-backup-list.json").read_bytes()
_IMPORT = ("run", "--rm", "-T", "cli", "import", "walg", "--folder-id", "f1", "--cluster-id", "c1")
_NEWEST = "c9q3vd0k8m1nt5rj2hfe"


async def test_import_and_read(compose: Compose, deployment: Deployment) -> None:
    """The command imports a listing, once and again, and reads it back through Envoy, with a token."""
    assert "4 added" in await compose.run(*_IMPORT, stdin=_SAMPLE)
    assert "nothing changed" in await compose.run(*_IMPORT, stdin=_SAMPLE)
    client = ("run", "--rm", "-T", "--env", f"BACKUPS_TOKEN={deployment.token('f1')}", "cli")
    listed = (await compose.run(*client, "list", "--folder-id", "f1", "--insecure")).splitlines()  # plaintext, between containers
    assert len(listed) == 5
    assert listed[1].startswith(_NEWEST)
    assert json.loads(await compose.run(*client, "get", _NEWEST, "--json", "--insecure"))["size"] == "913800120559"


async def test_the_service_can_write_nothing(compose: Compose, database_url: str) -> None:
    """The container's user owns nothing that it can write, on a file system that is read-only; its role can only read."""
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_replicas_are_restarted_in_turn(deployment: Deployment, number: signal.Signals) -> None:
    """No call fails while the containers are ended one after the other."""
    outcomes = await under_load(deployment, lambda: restarted_in_turn(deployment, number, 1))
    assert outcomes.codes == {"OK", "HTTP 200"}


async def test_postgres_is_restarted(compose: Compose, deployment: Deployment) -> None:
    """After a restart of PostgreSQL the replicas answer again, without one of their own."""
    await compose.run("restart", "postgres")
    await deployment.until_healthy(2)
    async with deployment.channel() as channel:
        await pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="f1"), timeout=10)


async def test_stop(compose: Compose, deployment: Deployment) -> None:
    """`docker compose stop` ends each replica with 0, and `start` brings them back."""
    await compose.run("stop", "service")
    codes = await compose.run("ps", "--all", "--format", "{{.ExitCode}}", "service")
    assert set(codes.split()) == {"0"}
    await compose.run("start", "service")
    await deployment.until_healthy(2)
