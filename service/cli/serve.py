"""The commands `serve` and `dev`, which run a server."""

import typer

from service.cli.help import example
from service.errors import Error
from service.settings import Settings

commands = typer.Typer()


@commands.command(epilog=example("backup-service dev"))
def dev() -> None:
    """Serve a sample of backups from an embedded PostgreSQL, for development."""
    from service.dev import run as development

    development.run(Settings.read())


@commands.command(epilog=example("BACKUPS_DATABASE_URL=postgresql://backups_service@db/backups backup-service serve"))
def serve() -> None:
    """Serve the catalog in the PostgreSQL of BACKUPS_DATABASE_URL."""
    from service import composition, server
    from service.observability import logs

    settings = Settings.read()
    logs.configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    composition.log_warnings(settings)
    try:
        server.serve(lambda: composition.build_server(settings))
    except Error:
        raise
    except Exception as exc:  # a traceback would contain the error's text, and that may contain secrets
        logs.event("failed", level="critical", error=logs.describe(exc))
        raise typer.Exit(1) from None
