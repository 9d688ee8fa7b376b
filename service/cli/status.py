"""The command `status`."""

import asyncio
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.environment import read_settings
from service.cli.help import example
from service.cli.option_groups import check_text
from service.settings import Settings

if TYPE_CHECKING:
    from service.postgres.freshness import Freshness

commands = typer.Typer()

_UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def _length(text: str) -> timedelta:
    matched = re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII)
    if not matched:
        raise typer.BadParameter("must be a number with s, m, h or d, such as 26h")
    return int(matched[1]) * _UNITS[matched[2]]


@commands.command(epilog=example("backup-service status --folder-id f1 --max-age 26h"))
def status(
    folder_id: Annotated[
        str | None, typer.Option("--folder-id", callback=check_text, help="Only this folder's clusters.", show_default=False)
    ] = None,
    cluster_id: Annotated[
        str | None, typer.Option("--cluster-id", callback=check_text, help="Only this cluster.", show_default=False)
    ] = None,
    max_age: Annotated[
        timedelta | None,
        typer.Option(
            parser=_length,
            metavar="LENGTH",
            help="Exit with 2 if a last backup or a last import is older, if a backup is dated in the future, or if there is none: "
            "90m, 26h, 8d.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show each cluster's last backup and last import, by tool, from the PostgreSQL of BACKUPS_DATABASE_URL."""
    rows = asyncio.run(_freshness(read_settings(), folder_id, cluster_id))
    now = datetime.now(UTC)
    _print(rows, now, max_age, as_json=as_json)
    if not rows:
        print("No import matches these filters." if folder_id or cluster_id else "The catalog has no import.", file=sys.stderr)
    if max_age is not None and _report_overdue(rows, now, max_age):
        raise typer.Exit(2)


def _print(rows: "list[Freshness]", now: datetime, max_age: timedelta | None, *, as_json: bool) -> None:
    from service.cli import status_report
    from service.cli.table import Table, print_left_out, terminal_width

    if as_json:
        print(status_report.status_json(rows, now, max_age))
    elif rows:
        table = Table(status_report.columns(now), max_width=terminal_width())
        print(*table.lines(rows), sep="\n")
        print_left_out(table)


def _report_overdue(rows: "list[Freshness]", now: datetime, max_age: timedelta) -> bool:
    """Print the overdue clusters. Return True if any cluster is overdue, or if there is no cluster."""
    from service.cli import status_report

    lines = list(status_report.overdue_lines(rows, now, max_age))
    for line in lines:
        print(line, file=sys.stderr)
    return bool(lines) or not rows


async def _freshness(settings: Settings, folder_id: str | None, cluster_id: str | None) -> "list[Freshness]":
    from service import composition
    from service.postgres.freshness import freshness

    async with composition.database(settings) as database:
        return await freshness(database, folder_id=folder_id, cluster_id=cluster_id)
