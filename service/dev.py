"""
`dev`: embedded PostgreSQL, migrate, sample, serve; Ctrl-C stops all of it.

What starts a process comes before the server: gRPC does not survive a fork.
"""

import asyncio
import shlex
from pathlib import Path

from pydantic import SecretStr

from service import telemetry
from service.embedded_postgres import EmbeddedPostgres
from service.importers import walg
from service.postgres.loading import Options, Target, load
from service.postgres.migration import migrate
from service.server import Server, serve
from service.settings import Settings

_ROOT = Path(__file__).parents[1]
_DATA = _ROOT / ".data"
_DATABASE = "postgres"
_SAMPLE = _ROOT / "samples" / "walg-backup-list.json"
_FOLDER, _CLUSTER = "demo-folder", "demo-cluster"
_DEFAULTS = {"reflection": True, "log_format": "console"}


def run(settings: Settings) -> None:
    """
    Runs until Ctrl-C, over the database of the settings, or an embedded one that keeps its data from run to run.

    Raises:
        EmbeddedPostgresError, SchemaError, PortTaken: it cannot start; whatever had started is stopped.

    """
    settings = settings.model_copy(update={name: value for name, value in _DEFAULTS.items() if name not in settings.model_fields_set})
    telemetry.configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        _serve(settings, url, "the PostgreSQL of BACKUPS_DATABASE_URL")
        return
    postgres = EmbeddedPostgres(_DATA)
    with postgres.running():
        url = postgres.url(_DATABASE)
        _serve(settings.model_copy(update={"database_url": SecretStr(url)}), url, f"an embedded PostgreSQL, data in {postgres.folder}")


def _serve(settings: Settings, url: str, where: str) -> None:
    migrate(url)
    loaded = _load_sample(url)
    serve(settings, started=lambda server: _announce(server, settings, f"{loaded} from {_SAMPLE.relative_to(_ROOT)}; {where}"))


def _load_sample(url: str) -> str:
    target = Target(folder_id=_FOLDER, source_cluster_id=_CLUSTER, tool=walg.TOOL)
    with _SAMPLE.open("rb") as stream:
        summary = asyncio.run(load(url, walg.read(stream, id_prefix=_CLUSTER), target, Options()))
    return f"{summary.added + summary.changed + summary.unchanged} backups in folder {_FOLDER}, {summary.added} of them new,"


def _announce(server: Server, settings: Settings, loaded: str) -> None:
    command = ["./backup-service", "list", "--folder-id", _FOLDER]
    if server.address != type(settings).model_fields["listen"].default:
        command += ["--address", str(server.address)]
    print(f"Serving   {server.address} (gRPC, no TLS, no authentication)")
    print(f"Loaded    {loaded}")
    print(f"Try       {shlex.join(command)}")
    print("Stop      Ctrl-C", flush=True)
