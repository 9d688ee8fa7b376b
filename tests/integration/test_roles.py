"""Database roles: the service reads, imports write rows, and only the owner changes the schema."""

import asyncio

import asyncpg
import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles, migrate
from tests.support.catalog import OWNER, Sql
from tests.support.commands import RunCommand
from tests.support.postgres import denied

_WRITES = [
    "INSERT INTO backups VALUES ('b', 'f', now(), 'c', now(), 1, 'manual')",
    "UPDATE backups SET size = 1",
    "DELETE FROM backups",
    "INSERT INTO imports VALUES ('c', 'walg', 'f', now(), 0, 0, 0, 0)",
    "UPDATE imports SET entries = 1",
    "DELETE FROM imports",
    "INSERT INTO attempts VALUES ('c', 'gpbackup', 'f', 'd', 'n', now(), 'failed')",
    "UPDATE attempts SET state = 'crashed'",
    "DELETE FROM attempts",
    "INSERT INTO freshness VALUES ('c', 'gpbackup', 'f', 'd')",
    "UPDATE freshness SET backups = 1",
    "DELETE FROM freshness",
]
_CHANGES = [
    "TRUNCATE backups",
    "ALTER TABLE backups ADD COLUMN x int",
    "DROP TABLE backups",
    "CREATE TABLE x (y int)",
    "DROP FUNCTION backup_wire_v1_varint",
    "UPDATE alembic_version SET version_num = '0'",
]
_READS = [
    "SELECT id, wire FROM backups",
    "SELECT entries FROM imports",
    "SELECT state FROM attempts",
    "SELECT backups FROM freshness",
    "SELECT version_num FROM alembic_version",
]


async def _denied(url: str, statements: list[str]) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return await denied(connection, *statements)
    finally:
        await connection.close()


async def test_service_role(database_url: str) -> None:
    """The service's role can read the tables that it needs, and PostgreSQL denies everything else."""
    assert await _denied(database_url, _READS) == []
    assert await _denied(database_url, _WRITES + _CHANGES) == _WRITES + _CHANGES


async def test_import_role(import_url: str) -> None:
    """The role of imports can write rows and, from PostgreSQL 17 on, run VACUUM, and it cannot change the schema."""
    assert await _denied(import_url, _WRITES + _READS[:2]) == []
    assert await _denied(import_url, _CHANGES) == _CHANGES
    connection = await asyncpg.connect(import_url)
    warnings: list[object] = []
    connection.add_log_listener(lambda _, message: warnings.append(message))
    await connection.execute("VACUUM (ANALYZE) backups")
    assert len(warnings) == (0 if connection.get_server_version() >= (17,) else 1)
    await connection.close()


async def test_other_roles(postgres: EmbeddedPostgres, database_name: str, sql: Sql) -> None:
    """Other roles have no privileges."""
    other = f"other_{database_name}"
    await sql.execute(f"CREATE ROLE {other} LOGIN")
    statements = _READS + _WRITES + _CHANGES
    assert await _denied(postgres.url(database_name, user=other), statements) == statements
    await sql.execute(f"DROP ROLE {other}")


async def test_names_of_roles(postgres: EmbeddedPostgres, empty_database_url: str, sql: Sql, command: RunCommand) -> None:
    """Settings name the roles; `migrate` succeeds without them, and grants privileges to roles that were created since the last run."""
    database = empty_database_url.split("/")[3].partition("?")[0]
    reader = f"reader-of-{database}"
    settings = {"BACKUPS_DATABASE_URL": empty_database_url, "BACKUPS_SERVICE_ROLE": reader, "BACKUPS_IMPORT_ROLE": f"no_{database}"}
    assert (await command("migrate", **settings)).status == 0
    await sql.execute(f'CREATE ROLE "{reader}" LOGIN')
    url = postgres.url(database, user=reader)
    assert await _denied(url, _READS) == _READS
    assert (await command("migrate", **settings)).status == 0
    assert await _denied(url, _READS) == []
    assert await _denied(postgres.url(database, user=Roles().service), _READS) == _READS


async def test_renamed_roles(postgres: EmbeddedPostgres, empty_database_url: str, sql: Sql) -> None:
    """`migrate` revokes the privileges of a role that was removed from the settings or now has another purpose."""
    database = empty_database_url.split("/")[3].partition("?")[0]
    old, new = f"old_{database}", f"new_{database}"
    await sql.execute(f"CREATE ROLE {old} LOGIN; CREATE ROLE {new} LOGIN")
    try:
        await asyncio.to_thread(migrate, empty_database_url, roles=Roles(service=new, imports=old))
        assert await _denied(postgres.url(database, user=old), _WRITES) == []
        await asyncio.to_thread(migrate, empty_database_url, roles=Roles(service=old, imports=new))
        assert await _denied(postgres.url(database, user=old), _READS + _WRITES) == _WRITES
        assert await _denied(postgres.url(database, user=new), _WRITES) == []
        await sql.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
        await asyncio.to_thread(migrate, empty_database_url, roles=Roles(imports=new))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(postgres.url(database, user=old))
        assert await _denied(postgres.url(database, user=new), ["CREATE TEMPORARY TABLE x (y int)", *_WRITES]) == []
    finally:
        for role in (old, new):
            await sql.execute(f"REVOKE ALL ON DATABASE {database} FROM {role}")
        owner = await asyncpg.connect(empty_database_url)
        await owner.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {old}, {new}")
        await owner.close()
        await sql.execute(f"DROP ROLE {old}; DROP ROLE {new}")


async def test_migrate_with_another_role(postgres: EmbeddedPostgres, empty_database_url: str, command: RunCommand) -> None:
    """`migrate` with a role that is not the owner fails with one line."""
    for role in Roles():
        done = await command("migrate", BACKUPS_DATABASE_URL=empty_database_url.replace(OWNER, role))
        assert done.status == 1
        assert done.stderr.startswith("backup-service: the migration failed: ")
        assert done.stderr.count("\n") == 1


async def test_owner(sql: Sql, owner_url: str) -> None:
    """All tables and functions belong to the role that ran the migration."""
    await asyncio.to_thread(migrate, owner_url)
    owners = await sql.fetch("""
        SELECT DISTINCT pg_get_userbyid(relowner) AS owner FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE pronamespace = 'public'::regnamespace""")
    assert [row["owner"] for row in owners] == [OWNER]
