"""The command `dev`: a catalog in an embedded PostgreSQL with a sample, or in a database of the user, and the printed description.

Everything that starts a process runs before the server, because gRPC does not survive a fork.
"""

import asyncio
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from service.dev.embedded_postgres import EmbeddedPostgres
from service.importers import walg
from service.postgres.imports.import_backups import Options, Target, load
from service.postgres.migration import Roles, migrate
from service.project_files import IS_CLONE, SAMPLE, shown_path

_DATABASE = "postgres"
_FOLDER, _CLUSTER = "demo-folder", "demo-cluster"


class DevCatalog(NamedTuple):
    """A migrated catalog."""

    url: str
    loaded: str
    """Description of the imported backups or of the database, for the user."""
    is_embedded: bool


@contextmanager
def dev_catalog(url: str | None, data_folder: Path, roles: Roles) -> Iterator[DevCatalog]:
    """Migrate the database of `url`, or start an embedded PostgreSQL, which keeps its data in `data_folder`, and import a sample.

    Raises:
        EmbeddedPostgresError, SchemaError: there is no usable database; everything that was started is stopped.
    """
    if url is not None:
        migrate(url, roles=roles)
        yield DevCatalog(url, "nothing, because BACKUPS_DATABASE_URL names a database", is_embedded=False)
        return
    postgres = EmbeddedPostgres(data_folder)
    with postgres.running():
        url = postgres.url(_DATABASE)
        migrate(url)
        yield DevCatalog(url, f"{_load_sample(url)} into an embedded PostgreSQL, data in {postgres.folder}", is_embedded=True)


def _load_sample(url: str) -> str:
    target = Target(folder_id=_FOLDER, source_cluster_id=_CLUSTER, tool=walg.TOOL)
    with SAMPLE.open("rb") as stream:
        summary = asyncio.run(load(url, walg.read(stream, id_prefix=_CLUSTER), target, Options()))
    return (
        f"{summary.added + summary.changed + summary.unchanged} backups in folder {_FOLDER}, {summary.added} of them new, "
        f"from {shown_path(SAMPLE)}"
    )


def announce(catalog: DevCatalog, *, address: str, security: str, client_options: Sequence[str]) -> None:
    """Print the address of the server, a description of its catalog, and commands to copy.

    Args:
        client_options: options with which the commands reach the server.
    """
    program = "./backup-service" if IS_CLONE else "backup-service"
    command = [program, "list", "--folder-id", _FOLDER, *client_options]
    print(f"Serving   {address} (gRPC, {security})")
    print(f"Loaded    {catalog.loaded}")
    print(f"Try       {shlex.join(command)}")
    if catalog.is_embedded:
        arguments = ["import", "walg", str(shown_path(SAMPLE)), "--folder-id", _FOLDER, "--cluster-id", _CLUSTER]
        print(f"Import    BACKUPS_DATABASE_URL={shlex.quote(catalog.url)} {program} {shlex.join(arguments)}")
    print("Stop      Ctrl-C", flush=True)
