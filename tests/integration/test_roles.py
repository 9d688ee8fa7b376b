"""Database roles: the service's reads, the one of imports writes rows, and only the schema's owner changes the schema."""

import asyncio

import asyncpg
import pytest

from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles, migrate
from tests.support.catalog import OWNER, Sql
from tests.support.commands import RunCommand

_WRITES = [
    "INSERT INTO backups VALUES ('b', 'f', now(), 'c', now(), 1, 'manual')",
    "UPDATE backups SET size = 1",
    "DELETE FROM backups",
    "INSERT INTO imports VALUES ('c', 'walg', 'f', now(), 0, 0, 0)",
    "UPDATE imports SET entries = 1",
    "DELETE FROM imports",
]
_CHANGES = [
    "TRUNCATE backups",
    "ALTER TABLE backups ADD COLUMN x int",
    "DROP TABLE backups",
    "CREATE TABLE x (y int)",
    "DROP FUNCTION backup_wire_v1_varint",
    "UPDATE alembic_version SET version_num = '0'",
]
_READS = ["SELECT id, wire FROM backups", "SELECT backups FROM imports", "SELECT version_num FROM alembic_version"]


async def _refused(url: str, statements: list[str]) -> list[str]:
    """Those of the statements that the role may not run; none of them stays."""
    refused = []
    connection = await asyncpg.connect(url)
    for statement in statements:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute(statement)
        except asyncpg.InsufficientPrivilegeError:
            refused.append(statement)
        await transaction.rollback()
    await connection.close()
    return refused


async def test_the_service_can_read_and_no_more(database_url: str) -> None:
    """The service's role can SELECT what it needs; PostgreSQL itself refuses it all else."""
    assert await _refused(database_url, _READS) == []
    assert await _refused(database_url, _WRITES + _CHANGES) == _WRITES + _CHANGES


async def test_imports_can_write_rows_and_no_more(import_url: str) -> None:
    """The role of imports can write rows of both tables, and, from PostgreSQL 17 on, VACUUM them; the schema is not its own."""
    assert await _refused(import_url, _WRITES + _READS[:2]) == []
    assert await _refused(import_url, _CHANGES) == _CHANGES
    connection = await asyncpg.connect(import_url)
    warnings: list[object] = []
    connection.add_log_listener(lambda _, message: warnings.append(message))
    await connection.execute("VACUUM (ANALYZE) backups")
    assert len(warnings) == (0 if connection.get_server_version() >= (17,) else 1)
    await connection.close()


async def test_other_roles_can_do_nothing(postgres: EmbeddedPostgres, database_name: str, sql: Sql) -> None:
    """Nothing is granted to anybody else."""
    stranger = f"stranger_{database_name}"
    await sql.execute(f"CREATE ROLE {stranger} LOGIN")
    statements = _READS + _WRITES + _CHANGES
    assert await _refused(postgres.url(database_name, user=stranger), statements) == statements
    await sql.execute(f"DROP ROLE {stranger}")


async def test_roles_of_other_names(postgres: EmbeddedPostgres, empty_database_url: str, sql: Sql, command: RunCommand) -> None:
    """Settings name the roles; one that is made later has its grants from the next `migrate`, and without any a migration succeeds."""
    database = empty_database_url.split("/")[3].partition("?")[0]
    reader = f"reader-of-{database}"
    settings = {"BACKUPS_DATABASE_URL": empty_database_url, "BACKUPS_SERVICE_ROLE": reader, "BACKUPS_IMPORT_ROLE": f"no_{database}"}
    assert (await command("migrate", **settings)).status == 0
    await sql.execute(f'CREATE ROLE "{reader}" LOGIN')
    url = postgres.url(database, user=reader)
    assert await _refused(url, _READS) == _READS
    assert (await command("migrate", **settings)).status == 0
    assert await _refused(url, _READS) == []
    assert await _refused(postgres.url(database, user=Roles().service), _READS) == _READS


async def test_renamed_roles(postgres: EmbeddedPostgres, empty_database_url: str, sql: Sql) -> None:
    """A role that the settings no longer name, or name for something else, has lost what it had after the next `migrate`."""
    database = empty_database_url.split("/")[3].partition("?")[0]
    old, new = f"old_{database}", f"new_{database}"
    await sql.execute(f"CREATE ROLE {old} LOGIN; CREATE ROLE {new} LOGIN")
    try:
        await asyncio.to_thread(migrate, empty_database_url, roles=Roles(service=new, imports=old))
        assert await _refused(postgres.url(database, user=old), _WRITES) == []
        await asyncio.to_thread(migrate, empty_database_url, roles=Roles(service=old, imports=new))
        assert await _refused(postgres.url(database, user=old), _READS + _WRITES) == _WRITES
        assert await _refused(postgres.url(database, user=new), _WRITES) == []
        await sql.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
        await asyncio.to_thread(migrate, empty_database_url, roles=Roles(imports=new))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(postgres.url(database, user=old))
        assert await _refused(postgres.url(database, user=new), ["CREATE TEMPORARY TABLE x (y int)", *_WRITES]) == []
    finally:
        for role in (old, new):
            await sql.execute(f"REVOKE ALL ON DATABASE {database} FROM {role}")
        owner = await asyncpg.connect(empty_database_url)
        await owner.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {old}, {new}")
        await owner.close()
        await sql.execute(f"DROP ROLE {old}; DROP ROLE {new}")


async def test_migrate_needs_the_owner(postgres: EmbeddedPostgres, empty_database_url: str, command: RunCommand) -> None:
    """`migrate` under another role is one clear line."""
    for role in Roles():
        done = await command("migrate", BACKUPS_DATABASE_URL=empty_database_url.replace(OWNER, role))
        assert done.status == 1
        assert done.stderr.startswith("backup-service: the migration failed: ")
        assert done.stderr.count("\n") == 1


async def test_the_owner_owns_everything(sql: Sql, owner_url: str) -> None:
    """What the migration has made belongs to the role that ran it."""
    await asyncio.to_thread(migrate, owner_url)
    owners = await sql.fetch("""
        SELECT DISTINCT pg_get_userbyid(relowner) AS owner FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE pronamespace = 'public'::regnamespace""")
    assert [row["owner"] for row in owners] == [OWNER]
