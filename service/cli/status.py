"""The command `status`."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, NoReturn

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


class _Output(NamedTuple):
    """The format of the output, and files to write."""

    as_json: bool
    nagios: bool
    warn_age: timedelta | None
    textfile: Path | None


def _output(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    nagios: Annotated[
        bool, typer.Option("--nagios", help="Print one line for Nagios. Exit with 0 OK, 1 WARNING, 2 CRITICAL or 3 UNKNOWN.")
    ] = False,
    warn_age: Annotated[
        timedelta | None,
        typer.Option(
            parser=_length, metavar="LENGTH", help="With --nagios: warn if a last restorable backup is older.", show_default=False
        ),
    ] = None,
    textfile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the metrics for node_exporter's textfile collector: *.prom.", show_default=False),
    ] = None,
) -> _Output:
    if nagios and as_json:
        raise typer.BadParameter("prints one line: leave out --json", param_hint="--nagios")
    if warn_age is not None and not nagios:
        raise typer.BadParameter("is the warning of --nagios", param_hint="--warn-age")
    if textfile is not None and textfile.suffix != ".prom":
        raise typer.BadParameter("must end in .prom: node_exporter ignores other files", param_hint="--textfile")
    return _Output(as_json, nagios, warn_age, textfile)


class _Result(NamedTuple):
    """Rows to show, and their judgement at a time."""

    rows: "list[Freshness]"
    judged: "list[Freshness]"
    overdue: "list[Overdue]"
    now: datetime


@commands.command(epilog=example("backup-service status --folder-id f1 --max-age 26h"))
@option_groups(filters=_filters, rules=_rules, output=_output)
def status(filters: _Filters, rules: _Rules, output: _Output) -> None:
    """Show the last restorable backup and the last import of each cluster, by tool and database.

    The command reads the PostgreSQL of BACKUPS_DATABASE_URL, not the service.
    """
    result = _read(filters, rules)
    if output.textfile:
        from service.cli.textfile import write_textfile

        write_textfile(output.textfile, result.rows, result.now)
    if output.nagios:
        _exit_as_plugin(result, rules.max_age, output.warn_age)
    _print(result, as_json=output.as_json, has_rules=rules.any)
    if not result.rows:
        print("No import matches these filters." if any(filters) else "The catalog has no import.", file=sys.stderr)
    if rules.any and _report_overdue(result):
        raise typer.Exit(2)


def _read(filters: _Filters, rules: _Rules) -> _Result:
    """Read the rows of freshness and judge them."""
    from service.cli.expected import read_expected
    from service.cli.overdue import Limits, judge, judged

    if rules.expect and any(filters):
        raise typer.BadParameter(
            "judges the clusters that its file names: leave out --folder-id, --cluster-id and --tool", param_hint="--expect"
        )
    expected = read_expected(rules.expect) if rules.expect else None
    rows = asyncio.run(_freshness(read_settings(), filters))
    now = datetime.now(UTC)
    overdue = list(judge(rows, now, Limits(rules.max_age, rules.max_age_base), expected))
    return _Result(rows, judged(rows, expected), overdue, now)


def _exit_as_plugin(result: _Result, max_age: timedelta | None, warn_age: timedelta | None) -> NoReturn:
    from service.cli.nagios import Thresholds, report

    exit_status, line = report(result.judged, result.overdue, result.now, Thresholds(warn_age, max_age))
    print(line)
    raise typer.Exit(exit_status)


def _print(result: _Result, *, as_json: bool, has_rules: bool) -> None:
    from service.cli import status_report
    from service.cli.table import Table, print_left_out, terminal_width

    if as_json:
        print(status_report.status_json(result.rows, result.now, result.overdue if has_rules else None))
    elif result.rows:
        table = Table(status_report.columns(result.now), max_width=terminal_width())
        print(*table.lines(result.rows), sep="\n")
        print_left_out(table)


def _report_overdue(result: _Result) -> bool:
    """Print the overdue clusters. Return True if any cluster is overdue, or if there is no cluster."""
    from service.cli.overdue import lines

    for line in lines(result.overdue):
        print(line, file=sys.stderr)
    return bool(result.overdue) or not result.rows


async def _freshness(settings: Settings, filters: _Filters) -> "list[Freshness]":
    from service import composition
    from service.postgres.freshness import freshness

    async with composition.database(settings) as database:
        rows = await freshness(database, folder_id=filters.folder_id, cluster_id=filters.cluster_id)
    return [row for row in rows if filters.tool in (None, row.tool)]
