"""The command `remove-cluster`."""

import asyncio
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.environment import read_settings
from service.cli.formatting import printable, time
from service.cli.help import example
from service.cli.option_groups import check_text
from service.errors import CommandError

if TYPE_CHECKING:
    from service.postgres.remove_cluster import Removal

commands = typer.Typer()


@commands.command("remove-cluster", epilog=example("backup-service remove-cluster --cluster-id c1 --dry-run"))
def remove_cluster(
    cluster_id: Annotated[str, typer.Option("--cluster-id", callback=check_text, help="The decommissioned cluster.")],
    folder_id: Annotated[
        str | None, typer.Option("--folder-id", callback=check_text, help="Only its rows in this folder.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the rows that would be removed; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove a decommissioned cluster from the catalog: its backups by every tool, and the records of its imports.

    Everything is removed in one transaction. The backups themselves are not touched. Uses the PostgreSQL of BACKUPS_DATABASE_URL.
    """
    from service.postgres import remove_cluster as removal

    url, cluster = read_settings().require_database_url(), removal.Cluster(cluster_id, folder_id)
    preview = asyncio.run(removal.removal_preview(url, cluster))
    if dry_run:
        print(*_lines("Would remove from", cluster_id, preview), sep="\n")
        return
    if not yes:
        print(*_lines("About to remove from", cluster_id, preview), sep="\n", file=sys.stderr)
        if sys.stdin is None or not sys.stdin.isatty():  # None if the command was started with it closed
            raise CommandError("nothing was removed: pass --yes when there is no terminal to confirm on")
        typer.confirm("Remove it from the catalog?", abort=True, err=True)
    asyncio.run(removal.remove_cluster(url, cluster, expected=preview))
    print(*_lines("Removed from", cluster_id, preview), sep="\n")


def _lines(verb: str, cluster_id: str, removals: "Iterable[Removal]") -> Iterator[str]:
    yield f"{verb} cluster {printable(cluster_id)}:"
    for each in removals:
        last = f", the last completed {time(each.last_created_at)}" if each.last_created_at else ""
        record = ", and the record of their import" if each.was_imported else ""
        yield f"  folder {printable(each.folder_id)}, {each.tool}: {each.backups} backups{last}{record}"
