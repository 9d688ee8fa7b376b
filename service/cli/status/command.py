"""The command `status`."""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, NamedTuple, NoReturn

import typer

from service.cli.environment import read_settings
from service.cli.help import example
from service.cli.option_groups import option_groups
from service.cli.rules.judgement import Filters, Judgement, Rules, duration_option, filters_of, judge_catalog, rules_of

commands = typer.Typer()


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
    warn_age: Annotated[timedelta | None, duration_option("With --nagios: warn if a last restorable backup is older.")] = None,
    textfile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the metrics for node_exporter's textfile collector: *.prom.", show_default=False),
    ] = None,
) -> _Output:
    if nagios and as_json:
        raise typer.BadParameter("prints one line: leave out --json", param_hint="--nagios")
    if warn_age is not None and not nagios:
        raise typer.BadParameter("requires --nagios", param_hint="--warn-age")
    if textfile is not None and textfile.suffix != ".prom":
        raise typer.BadParameter("must end in .prom: node_exporter ignores other files", param_hint="--textfile")
    return _Output(as_json, nagios, warn_age, textfile)


@commands.command(epilog=example("backup-service status --folder-id f1 --max-age 26h"))
@option_groups(filters=filters_of, rules=rules_of, output=_output)
def status(filters: Filters, rules: Rules, output: _Output) -> None:
    """Show the last restorable backup and the last import of each cluster, by tool and database.

    With --max-age, --max-age-base or --expect, the exit status is 2 if something is overdue.
    The command reads the PostgreSQL of BACKUPS_DATABASE_URL, not the service.
    """
    result = asyncio.run(_read(filters, rules))
    if output.textfile:
        from service.cli.status.textfile import write_textfile

        write_textfile(output.textfile, result.rows, result.now)
    if output.nagios:
        _exit_as_plugin(result, rules.max_age, output.warn_age)
    _print(result, as_json=output.as_json, has_rules=rules.any)
    if not result.rows:
        print("No import matches these filters." if any(filters) else "The catalog has no import.", file=sys.stderr)
    if rules.any and _report_overdue(result):
        raise typer.Exit(2)


async def _read(filters: Filters, rules: Rules) -> Judgement:
    from service import composition

    async with composition.database(read_settings()) as database:
        return await judge_catalog(database, filters, rules)


def _exit_as_plugin(result: Judgement, max_age: timedelta | None, warn_age: timedelta | None) -> NoReturn:
    from service.cli.status.nagios import Thresholds, report

    exit_status, line = report(result.judged, result.overdue, result.now, Thresholds(warn_age, max_age))
    print(line)
    raise typer.Exit(exit_status)


def _print(result: Judgement, *, as_json: bool, has_rules: bool) -> None:
    from service.cli.status import columns
    from service.cli.table import Table, print_left_out, terminal_width

    if as_json:
        print(columns.status_json(result.rows, result.now, result.overdue if has_rules else None))
    elif result.rows:
        table = Table(columns.columns(result.now), max_width=terminal_width())
        print(*table.lines(result.rows), sep="\n")
        print_left_out(table)


def _report_overdue(result: Judgement) -> bool:
    """Print the overdue clusters. Return True if any cluster is overdue, or if there is no cluster."""
    from service.cli.rules.overdue import lines

    for line in lines(result.overdue):
        print(line, file=sys.stderr)
    return bool(result.overdue) or not result.rows
