"""A standby of an embedded PostgreSQL."""

import shutil
from pathlib import Path

from service.dev.embedded_postgres import EmbeddedPostgres


def cloned(primary: EmbeddedPostgres, folder: Path, **settings: str) -> EmbeddedPostgres:
    """A standby that follows the primary, which runs, once it is started."""
    standby = EmbeddedPostgres(folder, settings={"hot_standby": "on"} | settings)
    for each in (standby.folder, standby._sockets):
        standby._own(each)
    shutil.rmtree(standby._data, ignore_errors=True)
    primary._run(
        "pg_basebackup", "--pgdata", standby._data, "--host", primary._sockets, "--username", "postgres",
        "--write-recovery-conf", "--checkpoint=fast", "--no-sync",
    )  # fmt: skip
    return standby
