"""The commands `serve` and `dev`, which run a server."""

import signal
from datetime import timedelta
from typing import Any

import typer
from pydantic import SecretStr

from service.address import Address
from service.cli.help import example
from service.errors import Error
from service.settings import Settings

commands = typer.Typer()

_DEV: dict[str, Any] = {"reflection": True, "log_format": "console", "drain_delay": timedelta(0)}
"""Settings of `dev` that are not set."""


@commands.command(epilog=example("backup-service dev"))
def dev() -> None:
    """Serve a sample of backups from an embedded PostgreSQL, for development."""
    from service import composition, process, server
    from service.dev import run as development
    from service.postgres.migration import Roles

    settings = Settings.read()
    settings = settings.model_copy(update={name: value for name, value in _DEV.items() if name not in settings.model_fields_set})
    _start_logging(settings)
    url = settings.database_url.get_secret_value() if settings.database_url else None
    roles = Roles(service=settings.service_role, imports=settings.import_role)
    with development.dev_catalog(url, settings.data_folder, roles) as catalog:
        settings = settings.model_copy(update={"database_url": SecretStr(catalog.url)})

        def started(running: server.Server) -> None:
            options = _client_options(settings, running.address)
            development.announce(catalog, address=str(running.address), security=_security(settings), client_options=options)

        stop_signals = (*process.STOP_SIGNALS, signal.SIGHUP)  # SIGHUP: the terminal was closed
        server.serve(lambda: composition.build_server(settings), started=started, stop_signals=stop_signals)


@commands.command(epilog=example("BACKUPS_DATABASE_URL=postgresql://backups_service@db/backups backup-service serve"))
def serve() -> None:
    """Serve the catalog in the PostgreSQL of BACKUPS_DATABASE_URL."""
    from service import composition, server
    from service.observability import logs

    settings = Settings.read()
    _start_logging(settings)
    try:
        server.serve(lambda: composition.build_server(settings))
    except Error:
        raise
    except Exception as exc:  # a traceback would contain the error's text, and that may contain secrets
        logs.event("failed", level="critical", error=logs.describe(exc))
        raise typer.Exit(1) from None


def _start_logging(settings: Settings) -> None:
    from service import composition
    from service.observability import logs

    logs.configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    composition.log_warnings(settings)


def _client_options(settings: Settings, address: Address) -> list[str]:
    """Return the options with which client commands reach the server."""
    options = [] if address == Settings.model_fields["listen"].default else ["--address", str(address)]
    return [*options, "--tls"] if settings.tls_cert else options


def _security(settings: Settings) -> str:
    return f"{'TLS' if settings.tls_cert else 'no TLS'}, {'tokens' if settings.auth == 'jwt' else 'no authentication'}"
