"""`status` and `forget`: what the catalog has of a cluster."""

import asyncio
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.environment import read_settings
from service.cli.help import example
from service.errors import CommandError
from service.settings import Settings

if TYPE_CHECKING:
    from service.postgres.last_imports import Imported

commands = typer.Typer()

_UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def _length(text: str) -> timedelta:
    matched = re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII)
    if not matched:
        raise typer.BadParameter("must be a number with s, m, h or d, such as 26h")
    return int(matched[1]) * _UNITS[matched[2]]


@commands.command(epilog=example("backup-service status --folder-id f1 --max-age 26h"))
def status(
    folder_id: Annotated[str | None, typer.Option("--folder-id", help="Only this folder's clusters.", show_default=False)] = None,
    cluster_id: Annotated[str | None, typer.Option("--cluster-id", help="Only this cluster.", show_default=False)] = None,
    max_age: Annotated[
        timedelta | None,
        typer.Option(
            parser=_length,
            metavar="LENGTH",
            help="Exit with 2 if a last backup, or a last import, is older, or dated in the future, or if there is none: 90m, 26h, 8d.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show each cluster's last backup and last import, by tool, over the PostgreSQL of BACKUPS_DATABASE_URL."""
    from service.cli import output

    clusters = asyncio.run(_imported(read_settings(), folder_id, cluster_id))
    now = datetime.now(UTC)
    if as_json:
        print(output.status_json(clusters, now, max_age))
    elif clusters:
        print(*output.status_lines(clusters, now), sep="\n")
    if not clusters:
        print("Nothing has been imported into the catalog that this asks for.", file=sys.stderr)
    if max_age is not None:
        late = list(output.overdue_lines(clusters, now, max_age))
        print(*late, sep="\n", end="\n" if late else "", file=sys.stderr)
        if late or not clusters:
            raise typer.Exit(2)


async def _imported(settings: Settings, folder_id: str | None, cluster_id: str | None) -> "list[Imported]":
    from service import composition
    from service.postgres.last_imports import imported

    async with composition.database(settings) as database:
        return await imported(database, folder_id=folder_id, cluster_id=cluster_id)


@commands.command(epilog=example("backup-service forget --cluster-id c1 --dry-run"))
def forget(
    cluster_id: Annotated[str, typer.Option("--cluster-id", help="The cluster that is no more.")],
    folder_id: Annotated[str | None, typer.Option("--folder-id", help="Only what is in this folder.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all that the catalog has of a decommissioned cluster: its backups by every tool, and the record of its imports.

    In one transaction; the backups themselves are not touched. Uses the PostgreSQL of BACKUPS_DATABASE_URL.
    """
    from service.cli import output
    from service.postgres import remove_cluster

    url, cluster = read_settings().require_database_url(), remove_cluster.Cluster(cluster_id, folder_id)
    goes = asyncio.run(remove_cluster.what_goes(url, cluster))
    if dry_run:
        print(*output.forgotten_lines(cluster_id, goes, "This would go"), sep="\n")
        return
    if not yes:
        print(*output.forgotten_lines(cluster_id, goes, "This will go"), sep="\n", file=sys.stderr)
        if not sys.stdin.isatty():
            raise CommandError("nothing was removed: --yes, where nobody can be asked")
        typer.confirm("Remove it from the catalog?", abort=True, err=True)
    asyncio.run(remove_cluster.forget(url, cluster, expected=goes))
    print(*output.forgotten_lines(cluster_id, goes, "This has gone"), sep="\n")
