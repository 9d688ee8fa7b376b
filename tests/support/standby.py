"""A standby of an embedded PostgreSQL."""

import shutil
from pathlib import Path

from service.dev.embedded_postgres import EmbeddedPostgres


def clone_standby(primary: EmbeddedPostgres, folder: Path, **settings: str) -> EmbeddedPostgres:
    """Copy a running primary and return a standby that follows it once it is started."""
    standby = EmbeddedPostgres(folder, settings={"hot_standby": "on"} | settings)
    for each in (standby.folder, standby.sockets):
        standby.own(each)
    shutil.rmtree(standby.data, ignore_errors=True)
    primary.run(
        "pg_basebackup", "--pgdata", standby.data, "--host", primary.sockets, "--username", "postgres",
        "--write-recovery-conf", "--checkpoint=fast", "--no-sync",
    )  # fmt: skip
    return standby
