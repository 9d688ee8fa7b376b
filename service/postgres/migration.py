"""Alembic's way from one revision of the schema to another; see migrations/env.py for how a step runs."""

import io
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import asyncpg
from alembic import command, op
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError as AlembicError
from sqlalchemy.exc import DBAPIError

from service.errors import SchemaError
from service.postgres.database import UNAVAILABLE

_MIGRATIONS = Path(__file__).parents[2] / "migrations"
_LOCK_NOT_AVAILABLE = "55P03"


class Roles(NamedTuple):
    """Roles of PostgreSQL which `migrate` grants what they need, where they exist."""

    service: str = "backups_service"
    """Reads, and no more."""
    imports: str = "backups_import"
    """Writes rows."""


def migrate(url: str, *, to: str = "head", roles: Roles = Roles(), patience: timedelta = timedelta(minutes=10)) -> None:  # noqa: B008
    """Brings the schema to a revision, each step in a transaction of its own; safe to run twice at once (see migrations/env.py).

    The role that it connects as owns the schema. Others are granted what they need each time, since they may have been made meanwhile.

    A step gives up after a short wait for a lock, so that the calls which queue behind it do not wait long, and is tried again
    until `patience` is over. Runs an event loop of its own.

    Raises:
        SchemaError: there is no such revision, or a step failed; what was done before it stays.
    """
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        try:
            command.upgrade(_config(url, patience=patience, roles=roles), to)
            return
        except DBAPIError as exc:
            if _sqlstate(exc) != _LOCK_NOT_AVAILABLE or time.monotonic() > deadline:
                raise SchemaError(f"the migration failed: {exc.orig}") from exc
            time.sleep(0.5)  # lets pass what has queued behind the step
        except UNAVAILABLE as exc:
            raise SchemaError(f"the database cannot be reached: {exc}") from exc
        except asyncpg.PostgresError as exc:
            raise SchemaError(f"the migration failed: {exc}") from exc
        except AlembicError as exc:
            raise SchemaError(str(exc)) from exc


def migration_sql(*, to: str = "head", since: int = 0, roles: Roles = Roles()) -> str:  # noqa: B008
    """The SQL of the steps from one revision to another, for people to read; needs no database.

    Raises:
        SchemaError: there is no such revision.
    """
    script = io.StringIO()
    try:
        command.upgrade(_config(None, output=script, roles=roles), f"{since:04}:{to}" if since else to, sql=True)
    except AlembicError as exc:
        raise SchemaError(str(exc)) from exc
    return script.getvalue()


def downgrade(url: str, *, to: str) -> None:
    """Takes steps back, with their data; for development and tests."""
    command.downgrade(_config(url), to)


def create_index(name: str, definition: str) -> None:
    """For a step, which does nothing else: an index, while the table is read and written.

    Args:
        name: the index's.
        definition: what comes after the name, such as `ON backups (folder_id)`.

    PostgreSQL waits for every transaction that was there before, and keeps nobody waiting meanwhile. So this waits for as long as they
    take: to give up would leave an index that is not valid, and yet costs every write. What an earlier try has left is dropped first.
    """
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("SET statement_timeout = 0")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        op.execute(f"CREATE INDEX CONCURRENTLY {name} {definition}")
        op.execute("RESET lock_timeout")
        op.execute("RESET statement_timeout")


def heads() -> list[str]:
    """The newest revisions there are: one, unless two branches were merged carelessly."""
    return ScriptDirectory.from_config(_config(None)).get_heads()


def _config(
    url: str | None, *, roles: Roles | None = None, patience: timedelta = timedelta(0), output: io.StringIO | None = None
) -> Config:
    config = Config(output_buffer=output or io.StringIO())
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes.update(url=url, patience=patience, roles=roles)
    return config


def _sqlstate(exc: DBAPIError) -> str | None:
    return getattr(exc.orig, "sqlstate", None)
