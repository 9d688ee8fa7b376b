"""Migrations of the schema with Alembic; migrations/env.py runs each step."""

import io
import time
from datetime import timedelta
from typing import NamedTuple

import asyncpg
from alembic import command, op
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError as AlembicError
from sqlalchemy.exc import DBAPIError

from service.errors import ConnectFailed, SchemaError
from service.postgres.errors import cause
from service.project_files import MIGRATIONS

_LOCK_NOT_AVAILABLE = "55P03"
_LOST = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
_RETRY_DELAY_S = 0.5  # enough for the queries that have queued behind a step


class Roles(NamedTuple):
    """Roles of PostgreSQL that `migrate` grants privileges to, if they exist."""

    service: str = "backups_service"
    """Reads only."""
    imports: str = "backups_import"
    """Writes rows."""


def migrate(url: str, *, to: str = "head", roles: Roles = Roles(), timeout: timedelta = timedelta(minutes=10)) -> None:  # noqa: B008
    """Upgrade the schema to a revision, each step in its own transaction. Several processes may do so at the same time (migrations/env.py).

    The role of the URL owns the schema. The other roles are granted their privileges each time, because they may be new.

    A step waits only briefly for a lock, because queries queue behind it. It is retried until `timeout` has passed. Uses a new event
    loop.

    Raises:
        SchemaError: the database cannot be used, there is no such revision, or a step failed. The steps before it are committed.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            command.upgrade(_config(url, timeout=timeout, roles=roles), to)
            return
        except DBAPIError as exc:
            if _sqlstate(exc) != _LOCK_NOT_AVAILABLE or time.monotonic() > deadline:
                raise SchemaError(f"the migration failed: {_reason(_driver_error(exc))}") from exc
            time.sleep(_RETRY_DELAY_S)
        except ConnectFailed as exc:
            raise SchemaError(cause(exc)) from exc
        except (asyncpg.PostgresError, *_LOST) as exc:
            raise SchemaError(f"the migration failed: {_reason(exc)}") from exc
        except AlembicError as exc:
            raise SchemaError(str(exc)) from exc


def migration_sql(*, to: str = "head", since: int = 0, roles: Roles = Roles()) -> str:  # noqa: B008
    """Return the SQL of the steps from one revision to another; needs no database.

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
    """Undo steps, and delete their data; for development and tests."""
    command.downgrade(_config(url), to)


def create_index(name: str, definition: str) -> None:
    """Create an index while the table is read and written; for a step that does nothing else.

    PostgreSQL waits for every earlier transaction, and blocks nothing while it waits. There is no timeout, because a cancelled statement
    leaves an invalid index that slows every write down. An invalid index of an earlier attempt is dropped first.

    Args:
        name: name of the index.
        definition: the SQL after the name, such as `ON backups (folder_id)`.
    """
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("SET statement_timeout = 0")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        op.execute(f"CREATE INDEX CONCURRENTLY {name} {definition}")
        op.execute("RESET lock_timeout")
        op.execute("RESET statement_timeout")


def heads() -> list[str]:
    """Return the newest revisions: one, unless two branches of the code have added one each."""
    return ScriptDirectory.from_config(_config(None)).get_heads()


def _config(url: str | None, *, roles: Roles | None = None, timeout: timedelta = timedelta(0), output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output or io.StringIO())
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes.update(url=url, timeout=timeout, roles=roles)
    return config


def _sqlstate(exc: DBAPIError) -> str | None:
    return getattr(exc.orig, "sqlstate", None)


def _driver_error(exc: DBAPIError) -> BaseException | None:
    """Return asyncpg's error, without the text that SQLAlchemy adds."""
    return exc.orig and (exc.orig.__cause__ or exc.orig)


def _reason(exc: BaseException | None) -> str:
    """Return the cause of a lost connection, or PostgreSQL's own message: `cause` would advise to run this command."""
    return cause(exc) if isinstance(exc, _LOST) else str(exc)
