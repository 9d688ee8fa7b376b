"""Temporary PostgreSQL servers and databases."""

import contextlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg

from service.dev.embedded_postgres import EmbeddedPostgres
from tests.support.catalog import OWNER, Sql

_SMALL = {"wal_init_zero": "off", "max_wal_size": "96MB"}  # little write-ahead log, which may be in memory
_MEMORY, _DISK = Path("/dev/shm"), Path("/tmp")
_NEEDED_BYTES = 4 << 30
_PREFIX = "backups-test"
_numbers = itertools.count(1)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder that PostgreSQL's user can enter, and delete it when the context is left.

    The folder is in memory if there is space. On ext4, creating files is slow for seconds after many were deleted, as each test deletes its
    database. A clone of the template would then take ten times the CPU.
    """
    in_memory = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _NEEDED_BYTES
    parent = _MEMORY if in_memory else _DISK
    _remove_abandoned(parent)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}-{os.getpid()}-", dir=parent) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def run_postgres(settings: dict[str, str], *, programs: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """Run a new PostgreSQL server, and delete its files when the context is left."""
    with temporary_folder() as folder:
        postgres = EmbeddedPostgres(folder / "postgres", settings=_SMALL | settings, programs=programs)
        try:
            with postgres.running():
                yield postgres
        finally:
            postgres.remove()


@contextlib.asynccontextmanager
async def new_database(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    """Clone a template, yield the name of the new database, and drop it when the context is left."""
    name = f"test_{next(_numbers)}"
    # The copy of files takes half the time of the default, a copy of each page through the write-ahead log.
    await execute(postgres, f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {template} STRATEGY FILE_COPY")
    yield name
    await execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


async def execute(postgres: EmbeddedPostgres, statement: str) -> None:
    """Execute a statement as a superuser in the database `postgres`."""
    connection = await asyncpg.connect(postgres.url("postgres"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def denied(connection: Sql, *statements: str) -> list[str]:
    """Return the statements that the connection's role may not run; none of them has an effect."""
    found = []
    for statement in statements:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute(statement)
        except asyncpg.InsufficientPrivilegeError:
            found.append(statement)
        await transaction.rollback()
    return found


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of pytest processes that were killed."""
    for folder in parent.glob(f"{_PREFIX}-*-*"):
        pid = re.fullmatch(rf"{_PREFIX}-(\d+)-.*", folder.name)
        if pid and not Path("/proc", pid[1]).exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
