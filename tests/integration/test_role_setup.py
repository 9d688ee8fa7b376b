"""deploy/postgres: roles and passwords of a new PostgreSQL with password authentication."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import asyncpg
import pytest

from service.dev.embedded_postgres import EmbeddedPostgres, server_user
from service.postgres.migration import Roles, migrate
from service.postgres.session import lock_cluster, open_session
from tests.support.catalog import OWNER
from tests.support.postgres import denied, temporary_folder
from tests.support.repository import ROOT

_FOLDER = ROOT / "deploy" / "postgres"
_PASSWORDS = {OWNER: "owner hunter2 'x' \\ %", Roles().imports: "import-hunter2", Roles().service: "service-hunter2"}
_HBA = "local all postgres trust\nlocal all all scram-sha-256\n"


class Installed(NamedTuple):
    """A PostgreSQL on which deploy/postgres was run, with every statement in its log."""

    postgres: EmbeddedPostgres

    async def connect(self, user: str, database: str = "backups", password: str | None = None) -> asyncpg.Connection:
        password = _PASSWORDS.get(user) if password is None else password
        return await asyncpg.connect(host=str(self.postgres.sockets), user=user, database=database, password=password)

    async def denied(self, user: str, *statements: str) -> list[str]:
        """Return the statements that the role may not run; none of them has an effect."""
        connection = await self.connect(user)
        try:
            await connection.execute("SET default_transaction_read_only = off")  # any role may
            return await denied(connection, *statements)
        finally:
            await connection.close()


@pytest.fixture(name="installed", scope="module")
def _installed() -> Iterator[Installed]:
    with temporary_folder() as folder:
        hba = folder / "pg_hba.conf"
        hba.write_text(_HBA, encoding="utf-8")
        os.chown(hba, server_user().pw_uid, -1)
        settings = {"fsync": "off", "log_statement": "all", "log_min_duration_statement": "0", "hba_file": str(hba)}
        postgres = EmbeddedPostgres(folder / "postgres", settings=settings)
        with postgres.running():
            _run_scripts(postgres, folder)
            migrate(_url(postgres, OWNER))
            yield Installed(postgres)
        postgres.remove()


def _run_scripts(postgres: EmbeddedPostgres, folder: Path) -> None:
    environment = {"PATH": f"{postgres.program('psql').parent}:{os.environ['PATH']}"}
    admin = ["--host", str(postgres.sockets), "--username", "postgres", "--dbname", "postgres"]
    subprocess.run(["psql", *admin, "--file", _FOLDER / "roles.sql"], env=environment, check=True, capture_output=True)
    (folder / "owner").write_text(_PASSWORDS[OWNER] + "\n", encoding="utf-8")
    variables = {
        "BACKUPS_OWNER_PASSWORD_FILE": str(folder / "owner"),
        "BACKUPS_IMPORT_PASSWORD": _PASSWORDS[Roles().imports],
        "BACKUPS_SERVICE_PASSWORD": _PASSWORDS[Roles().service],
    }
    subprocess.run([_FOLDER / "passwords.sh", *admin], env=environment | variables, check=True, capture_output=True)


def _url(postgres: EmbeddedPostgres, user: str) -> str:
    return postgres.url("backups", user=f"{user}:{quote(_PASSWORDS[user], safe='')}")


async def test_each_role_has_its_own_password(installed: Installed) -> None:
    """Each role can connect with its own password only."""
    for user in _PASSWORDS:
        await (await installed.connect(user)).close()
        for other, password in _PASSWORDS.items():
            if other != user:
                with pytest.raises(asyncpg.InvalidPasswordError):
                    await installed.connect(user, password=password)
        with pytest.raises(asyncpg.InvalidPasswordError):
            await installed.connect(user, password="")


async def test_no_password_in_the_log(installed: Installed) -> None:
    """The log of all statements contains the verifiers and none of the passwords."""
    log = installed.postgres.log.read_text(encoding="utf-8", errors="replace")
    assert log.count("SCRAM-SHA-256$") >= len(_PASSWORDS)
    assert [password for password in _PASSWORDS.values() if password in log] == []
    assert "hunter2" not in log


def test_a_missing_password(installed: Installed) -> None:
    """Without a password the script changes nothing, and its error names the variable."""
    done = subprocess.run([_FOLDER / "passwords.sh"], env={"PATH": os.defpath}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "passwords.sh: set BACKUPS_OWNER_PASSWORD or BACKUPS_OWNER_PASSWORD_FILE\n")


async def test_others_cannot_connect(installed: Installed) -> None:
    """A role without privileges cannot connect to the database."""
    admin = await installed.connect("postgres", "postgres")
    await admin.execute("CREATE ROLE another LOGIN; ALTER ROLE another PASSWORD 'secret'")
    await admin.close()
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match='permission denied for database "backups"'):
        await installed.connect("another", password="secret")


@pytest.mark.parametrize("database", ["postgres", "template1"])
async def test_roles_connect_to_their_database_only(installed: Installed, database: str) -> None:
    """No role can connect to the databases that every role can connect to by default."""
    for user in _PASSWORDS:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match=f'permission denied for database "{database}"'):
            await installed.connect(user, database)


@pytest.mark.parametrize("role", [Roles().service, Roles().imports])
async def test_temporary_files_are_limited(installed: Installed, role: str) -> None:
    """A session of the service and of an import has a limit of disk space for sorts."""
    connection = await installed.connect(role)
    limit = await connection.fetchval("SELECT setting::int FROM pg_settings WHERE name = 'temp_file_limit'")
    await connection.close()
    assert limit > 0


_DENIED = (
    "CREATE ROLE x",
    "CREATE SCHEMA x",
    "CREATE TABLE public.x (y int)",
    "ALTER ROLE backups_owner PASSWORD 'x'",
    "COPY backups TO PROGRAM 'true'",
    "SELECT pg_read_file('PG_VERSION')",
    "SET ROLE backups_owner",
    "TRUNCATE backups",
    "DROP TABLE backups",
    "ALTER TABLE backups ADD COLUMN x int",
    "CREATE INDEX ON backups (size)",
    "UPDATE alembic_version SET version_num = '0'",
    "LOCK TABLE migration_lock IN ACCESS SHARE MODE",
    "LOCK TABLE migration_lock IN EXCLUSIVE MODE",
    "SELECT * FROM migration_lock",
    "DELETE FROM cluster_locks",
    "TRUNCATE cluster_locks",
    "SELECT lo_create(0)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT lo_unlink(1)",
    "SELECT loread(0, 1)",
    "SELECT lowrite(0, 'x')",
    "SELECT pg_logical_emit_message(true, 'x', 'y')",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_xact_lock_shared(1, 2)",
    "SET temp_file_limit = -1",
    "ALTER ROLE CURRENT_USER SET temp_file_limit = -1",
    "ALTER ROLE CURRENT_USER CONNECTION LIMIT -1",
    "ALTER ROLE CURRENT_USER SUPERUSER",
)

_CLUSTER_LOCKS = ("SELECT FROM cluster_locks FOR UPDATE", "SELECT FROM cluster_locks FOR KEY SHARE", "LOCK TABLE cluster_locks")


async def test_service_role(installed: Installed) -> None:
    """The service's role changes nothing, has no temporary tables, and cannot take the lock of migrations."""
    statements = (
        *_DENIED,
        *_CLUSTER_LOCKS,
        "CREATE TEMPORARY TABLE x (y int)",
        "INSERT INTO imports DEFAULT VALUES",
        "DELETE FROM backups",
    )
    assert await installed.denied(Roles().service, *statements) == list(statements)


async def test_import_role(installed: Installed) -> None:
    """The role of imports writes rows and has temporary tables; it changes no schema and cannot take the lock of migrations."""
    assert await installed.denied(Roles().imports, *_DENIED) == list(_DENIED)
    assert await installed.denied(Roles().imports, "CREATE TEMPORARY TABLE x (y int)", "DELETE FROM backups") == []


_NOT_REVOCABLE = (
    "ALTER ROLE CURRENT_USER PASSWORD 'x'",
    "ALTER ROLE CURRENT_USER SET search_path = 'x'",
    "SET statement_timeout = 0",
    "SET work_mem = '1GB'",
    "NOTIFY x",
)


@pytest.mark.parametrize("role", [Roles().service, Roles().imports])
async def test_privileges_that_cannot_be_revoked(installed: Installed, role: str) -> None:
    """A role can change its own password and settings, because PostgreSQL has no privilege for this. SECURITY.md documents it."""
    assert await installed.denied(role, *_NOT_REVOCABLE) == []


async def test_advisory_locks_do_not_stop_migrate(installed: Installed) -> None:
    """`migrate` does not wait for advisory locks of other roles."""
    connection = await installed.connect("postgres")  # the roles may not take advisory locks
    await connection.execute("SELECT pg_advisory_lock(x'6261636B757073'::bigint)")
    await asyncio.to_thread(migrate, _url(installed.postgres, OWNER), timeout=timedelta(seconds=1))
    await connection.close()


async def test_advisory_locks_do_not_block_imports(installed: Installed) -> None:
    """Imports do not wait for advisory locks of other roles, and only the role of imports may lock the rows of cluster_locks."""
    connection = await installed.connect("postgres")  # the roles may not take advisory locks
    await connection.execute("SELECT pg_advisory_lock(hashtextextended('backups import c1', 0))")
    async with open_session(_url(installed.postgres, Roles().imports)) as importing, importing.transaction(), asyncio.timeout(10):
        await lock_cluster(importing, "c1")
    await connection.close()
    assert await installed.denied(Roles().service, *_CLUSTER_LOCKS) == list(_CLUSTER_LOCKS)
    assert await installed.denied(Roles().imports, *_CLUSTER_LOCKS) == []


async def test_connections_are_limited(installed: Installed) -> None:
    """Each role has a limit of connections, so that none can use all of them."""
    admin = await installed.connect("postgres", "postgres")
    rows = await admin.fetch("SELECT rolname, rolconnlimit FROM pg_roles WHERE rolname LIKE 'backups_%'")
    limits = {row["rolname"]: row["rolconnlimit"] for row in rows}
    available = int(await admin.fetchval("SHOW max_connections")) - int(await admin.fetchval("SHOW superuser_reserved_connections"))
    await admin.close()
    assert set(limits) == set(_PASSWORDS)
    assert min(limits.values()) > 0
    assert sum(limits.values()) <= available
    connections = [await installed.connect(OWNER) for _ in range(limits[OWNER])]
    with pytest.raises(asyncpg.TooManyConnectionsError):
        await installed.connect(OWNER)
    for connection in connections:
        await connection.close()
