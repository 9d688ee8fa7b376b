"""`dev`, `serve`, and `migrate`, which comes before them."""

from typing import Annotated

import typer

from service.cli.environment import read_settings
from service.cli.help import example
from service.errors import Error
from service.settings import Settings

commands = typer.Typer()


@commands.command(epilog=example("backup-service dev"))
def dev() -> None:
    """Serve with an embedded PostgreSQL and a sample of backups: what `make run` runs."""
    from service.dev import run as development

    development.run(Settings.read())


@commands.command(epilog=example("BACKUPS_DATABASE_URL=postgresql://backups_service@db/backups backup-service serve"))
def serve() -> None:
    """Serve, over the PostgreSQL of BACKUPS_DATABASE_URL."""
    from service import composition, server
    from service.observability import logs

    settings = Settings.read()
    logs.configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    composition.log_warnings(settings)
    try:
        server.serve(settings)
    except Error:
        raise
    except Exception as exc:  # a traceback would have its text
        logs.event("failed", level="critical", error=logs.describe(exc))
        raise typer.Exit(1) from None


@commands.command(epilog=example("backup-service migrate --dry-run"))
def migrate(
    to: Annotated[str, typer.Option(help="The revision to go to: a number such as 0001, or head.")] = "head",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the SQL that would bring an empty database there; change nothing.")
    ] = False,
) -> None:
    """Bring the schema of BACKUPS_DATABASE_URL to the newest revision; safe to run twice at once."""
    from service.postgres import migration

    settings = read_settings()
    roles = migration.Roles(service=settings.service_role, imports=settings.import_role)
    if dry_run:
        typer.echo(migration.migration_sql(to=to, roles=roles))
    else:
        migration.migrate(settings.require_database_url(), to=to, roles=roles)
        typer.echo(f"The schema is at revision {to}{'' if to == 'head' else ', or a newer one'}.")
