"""The command `status`."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from service.cli.environment import read_settings
from service.cli.help import example
from service.cli.lengths import parse_length
from service.cli.option_groups import check_text, option_groups
from service.settings import Settings

if TYPE_CHECKING:
    from service.cli.overdue import Overdue
    from service.postgres.freshness import Freshness

commands = typer.Typer()


def _length(text: str) -> timedelta:
    if (length := parse_length(text)) is None:
        raise typer.BadParameter("must be a number with s, m, h or d, such as 26h")
    return length


class _Filters(NamedTuple):
    """The clusters that are shown and judged."""

    folder_id: str | None
    cluster_id: str | None
    tool: str | None


def _filters(
    folder_id: Annotated[
        str | None, typer.Option("--folder-id", callback=check_text, help="Only this folder's clusters.", show_default=False)
    ] = None,
    cluster_id: Annotated[
        str | None, typer.Option("--cluster-id", callback=check_text, help="Only this cluster.", show_default=False)
    ] = None,
    tool: Annotated[Literal["walg", "gpbackup"] | None, typer.Option(help="Only backups of this tool.", show_default=False)] = None,
) -> _Filters:
    return _Filters(folder_id, cluster_id, tool)


class _Rules(NamedTuple):
    """Limits, and the file of `--expect`."""

    max_age: timedelta | None
    max_age_base: timedelta | None
    expect: Path | None

    @property
    def any(self) -> bool:
        return any(rule is not None for rule in self)


def _rules(
    max_age: Annotated[
        timedelta | None,
        typer.Option(
            parser=_length,
            metavar="LENGTH",
            help="Exit with 2 if a last restorable backup or a last import is older, if there is none, or if it is dated in the future: "
            "90m, 26h, 8d.",
            show_default=False,
        ),
    ] = None,
    max_age_base: Annotated[
        timedelta | None,
        typer.Option(
            parser=_length, metavar="LENGTH", help="The same for the last restorable backup that is not an increment.", show_default=False
        ),
    ] = None,
    expect: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Judge only the clusters that this file names, and exit with 2 if one was never imported. "
            "A line is: cluster [tool [database]] [max-age].",
            show_default=False,
        ),
    ] = None,
) -> _Rules:
    return _Rules(max_age, max_age_base, expect)


@commands.command(epilog=example("backup-service status --folder-id f1 --max-age 26h"))
@option_groups(filters=_filters, rules=_rules)
def status(filters: _Filters, rules: _Rules, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the last restorable backup and the last import of each cluster, by tool and database.

    The command reads the PostgreSQL of BACKUPS_DATABASE_URL, not the service.
    """
    rows, overdue = _read(filters, rules)
    _print(rows, overdue, as_json=as_json)
    if not rows:
        print("No import matches these filters." if any(filters) else "The catalog has no import.", file=sys.stderr)
    if rules.any and _report_overdue(rows, overdue):
        raise typer.Exit(2)


def _read(filters: _Filters, rules: _Rules) -> "tuple[list[Freshness], list[Overdue] | None]":
    """Return the rows of freshness, and the broken rules if there are rules."""
    from service.cli.expected import read_expected
    from service.cli.overdue import Limits, judge

    if rules.expect and any(filters):
        raise typer.BadParameter(
            "judges the clusters that its file names: leave out --folder-id, --cluster-id and --tool", param_hint="--expect"
        )
    expected = read_expected(rules.expect) if rules.expect else None
    rows = asyncio.run(_freshness(read_settings(), filters))
    if not rules.any:
        return rows, None
    return rows, list(judge(rows, datetime.now(UTC), Limits(rules.max_age, rules.max_age_base), expected))


def _print(rows: "list[Freshness]", overdue: "list[Overdue] | None", *, as_json: bool) -> None:
    from service.cli import status_report
    from service.cli.table import Table, print_left_out, terminal_width

    now = datetime.now(UTC)
    if as_json:
        print(status_report.status_json(rows, now, overdue))
    elif rows:
        table = Table(status_report.columns(now), max_width=terminal_width())
        print(*table.lines(rows), sep="\n")
        print_left_out(table)


def _report_overdue(rows: "list[Freshness]", overdue: "list[Overdue] | None") -> bool:
    """Print the overdue clusters. Return True if any cluster is overdue, or if there is no cluster."""
    from service.cli.overdue import lines

    for line in lines(overdue or ()):
        print(line, file=sys.stderr)
    return bool(overdue) or not rows


async def _freshness(settings: Settings, filters: _Filters) -> "list[Freshness]":
    from service import composition
    from service.postgres.freshness import freshness

    async with composition.database(settings) as database:
        rows = await freshness(database, folder_id=filters.folder_id, cluster_id=filters.cluster_id)
    return [row for row in rows if filters.tool in (None, row.tool)]
