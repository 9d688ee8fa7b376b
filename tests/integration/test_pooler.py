"""PgBouncer in transaction mode between the service and PostgreSQL."""

import asyncio
import contextlib
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import pb
from service.backup import Position
from service.dev.embedded_postgres import EmbeddedPostgres, server_user
from service.errors import BackupNotFound
from service.postgres.catalog import Catalog
from service.postgres.database import open_database
from service.postgres.migration import Roles
from tests.support.catalog import AddBackups
from tests.support.debian import debian_program
from tests.support.limits import LIMITS
from tests.support.ports import free_ports

pytestmark = pytest.mark.debian("pgbouncer", program="pgbouncer")

_LIMITS = LIMITS._replace(pool_size=50)
_CONFIGURATION = """
[databases]
{database} = host={sockets}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = 2
"""


@pytest.fixture(name="pooled_url")
def _pooled_url(postgres: EmbeddedPostgres, database_name: str) -> Iterator[str]:
    """Yield the URL of the test's database through a PgBouncer with two connections to PostgreSQL."""
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="backups-pgbouncer-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PgBouncer does not run as root
        users, configuration = folder / "users.txt", folder / "pgbouncer.ini"
        users.write_text(f'"{Roles().service}" ""\n', encoding="utf-8")
        configuration.write_text(
            _CONFIGURATION.format(database=database_name, sockets=postgres.sockets, port=port, users=users), encoding="utf-8"
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [debian_program("pgbouncer") or "", "-u", server_user().pw_name, configuration], stdout=log, stderr=log
            )
        try:
            _wait_for(port)
            yield f"postgresql://{Roles().service}@127.0.0.1:{port}/{database_name}"
        finally:
            process.terminate()
            process.wait(10)


def _wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise TimeoutError


async def _ids(catalog: Catalog, after: Position | None, size: int) -> list[str]:
    page = await catalog.page("f1", after=after, size=size, client="")
    return [backup.id for backup in pb.ListBackupsResponse.FromString(bytes(page.elements)).backups]


async def test_transaction_mode(pooled_url: str, add_backups: AddBackups) -> None:
    """Fifty concurrent callers over two connections each get the results of their own queries."""
    backups = await add_backups(30, folder_id="f1")

    async def call(number: int) -> None:
        rng = random.Random(number)
        for _ in range(20):
            index = rng.randrange(len(backups) - 1)
            match rng.randrange(4):
                case 0:
                    assert backups[index].id.encode() in await catalog.get(backups[index].id, folders=None)
                case 1:
                    with pytest.raises(BackupNotFound):
                        await catalog.get("none", folders=None)
                case 2:
                    assert await _ids(catalog, None, 3) == [backup.id for backup in backups[:3]]
                case _:
                    after = Position(backups[index].created_at, backups[index].id)
                    assert await _ids(catalog, after, 1) == [backups[index + 1].id]

    async with open_database(pooled_url, _LIMITS, pooled=True) as database:
        catalog = Catalog(database)
        await asyncio.gather(*(call(number) for number in range(50)))
