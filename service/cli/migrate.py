"""The commands `roles` and `migrate`, which prepare a database."""

from typing import Annotated

import typer

from service.cli.environment import read_settings
from service.cli.help import example

commands = typer.Typer()


@commands.command(epilog=example("backup-service roles"))
def roles() -> None:
    """Print the SQL that creates the database and the roles, without passwords. Run it with psql as a superuser."""
    from service.project_files import ROLES

    typer.echo(ROLES.read_text(encoding="utf-8"), nl=False)


@commands.command(epilog=example("backup-service migrate --dry-run"))
def migrate(
    to: Annotated[str, typer.Option(help="The target revision: a number such as 0001, or head.")] = "head",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL for an empty database; change nothing.")] = False,
) -> None:
    """Migrate the schema of BACKUPS_DATABASE_URL to the newest revision. Several runs at the same time are safe."""
    from service.postgres import migration

    settings = read_settings()
    granted = migration.Roles(service=settings.service_role, imports=settings.import_role)
    if dry_run:
        typer.echo(migration.migration_sql(to=to, roles=granted))
    else:
        migration.migrate(settings.require_database_url(), to=to, roles=granted)
        typer.echo(f"The schema is at revision {to}{'' if to == 'head' else ', or a newer one'}.")
