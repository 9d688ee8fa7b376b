"""The command `dev`: start an embedded PostgreSQL, migrate it, import a sample, serve.

Everything that starts a process runs before the server, because gRPC does not survive a fork.
"""

import asyncio
import shlex
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

from service.composition import build_server, log_warnings
from service.dev.embedded_postgres import EmbeddedPostgres
from service.importers import walg
from service.observability import logs
from service.postgres.import_backups import Options, Target, load
from service.postgres.migration import Roles, migrate
from service.server import Server, serve
from service.settings import Settings

_ROOT = Path(__file__).parents[2]
_DATABASE = "postgres"
_SAMPLE = _ROOT / "samples" / "walg-backup-list.json"
_FOLDER, _CLUSTER = "demo-folder", "demo-cluster"
_DEFAULTS = {"reflection": True, "log_format": "console", "drain_delay": timedelta(0)}


def run(settings: Settings) -> None:
    """Serve until Ctrl-C, over the database of the settings or an embedded one that keeps its data from run to run.

    Raises:
        EmbeddedPostgresError, SchemaError, PortTaken: it cannot start; everything that was started is stopped.
    """
    settings = settings.model_copy(update={name: value for name, value in _DEFAULTS.items() if name not in settings.model_fields_set})
    logs.configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    log_warnings(settings)
    if settings.database_url is not None:
        migrate(settings.database_url.get_secret_value(), roles=Roles(service=settings.service_role, imports=settings.import_role))
        serve(
            lambda: build_server(settings),
            started=lambda server: _announce(server, settings, "nothing: BACKUPS_DATABASE_URL names a database of yours"),
        )
        return
    postgres = EmbeddedPostgres(settings.data_folder)
    with postgres.running():
        url = postgres.url(_DATABASE)
        migrate(url)
        loaded = f"{_load_sample(url)} into an embedded PostgreSQL, data in {postgres.folder}"
        settings = settings.model_copy(update={"database_url": SecretStr(url)})
        serve(lambda: build_server(settings), started=lambda server: _announce(server, settings, loaded, import_into=url))


def _load_sample(url: str) -> str:
    target = Target(folder_id=_FOLDER, source_cluster_id=_CLUSTER, tool=walg.TOOL)
    with _SAMPLE.open("rb") as stream:
        summary = asyncio.run(load(url, walg.read(stream, id_prefix=_CLUSTER), target, Options()))
    return (
        f"{summary.added + summary.changed + summary.unchanged} backups in folder {_FOLDER}, {summary.added} of them new, "
        f"from {_SAMPLE.relative_to(_ROOT)}"
    )


def _announce(server: Server, settings: Settings, loaded: str, *, import_into: str | None = None) -> None:
    """Print where the server listens, what it serves, and commands to copy."""
    command = ["./backup-service", "list", "--folder-id", _FOLDER]
    if server.address != type(settings).model_fields["listen"].default:
        command += ["--address", str(server.address)]
    if settings.tls_cert:
        command.append("--tls")
    security = f"{'TLS' if settings.tls_cert else 'no TLS'}, {'tokens' if settings.auth == 'jwt' else 'no authentication'}"
    print(f"Serving   {server.address} (gRPC, {security})")
    print(f"Loaded    {loaded}")
    print(f"Try       {shlex.join(command)}")
    if import_into:
        listing = ["import", "walg", str(_SAMPLE.relative_to(_ROOT)), "--folder-id", _FOLDER, "--cluster-id", _CLUSTER]
        print(f"Import    BACKUPS_DATABASE_URL={shlex.quote(import_into)} ./backup-service {shlex.join(listing)}")
    print("Stop      Ctrl-C", flush=True)
