"""The command `backup-service`: each command parses its arguments, calls one function and prints the result."""

import sys
from typing import Annotated

import typer

from service import VERSION
from service.cli import migrate, remove_cluster, serve, streams
from service.cli.chain import command as chain
from service.cli.client import commands as client
from service.cli.environment import print_warnings
from service.cli.formatting import printable
from service.cli.imports import commands as imports
from service.cli.report import command as report
from service.cli.status import command as status
from service.errors import Error
from service.settings import check_environment

app = typer.Typer(
    name="backup-service",
    help="A catalog of the backups of Greenplum clusters: its server, the imports that fill it, and a client.",
    epilog="""\b
Exit status: 0: success;
1: failure, with the reason on standard error;
2: wrong command line; of status: a rule is broken.
status --nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN or any error.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"backup-service {VERSION}")
        raise typer.Exit


@app.callback()
def _check_environment(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    warnings = check_environment()
    if context.invoked_subcommand not in ("dev", "serve"):  # these log them
        print_warnings(warnings)


app.add_typer(serve.commands)
app.add_typer(migrate.commands)
app.add_typer(imports.commands, name="import")
app.add_typer(status.commands)
app.add_typer(chain.commands)
app.add_typer(report.commands)
app.add_typer(remove_cluster.commands)
app.add_typer(client.commands)


def main() -> None:
    """Run the command and exit. An expected error is one message on standard error, with exit status 1."""
    streams.prepare()
    try:
        exit_status = run()
        sys.stdout.flush()
    except OSError as exc:
        if not streams.is_output_error(exc):
            raise
        streams.discard_output()
        streams.report_output_error(exc)
        exit_status = 3 if _is_plugin() else 1
    sys.exit(exit_status)


def run() -> int | str | None:
    """Run the command, and return the exit status."""
    if _is_plugin():
        from service.cli.status import nagios  # imports the catalog

        return nagios.run(app)
    try:
        app(prog_name="backup-service")
    except SystemExit as exc:
        return exc.code
    except Error as exc:  # its text may be that of a service
        print("backup-service:", "\n".join(map(printable, str(exc).split("\n"))), file=sys.stderr)
    return 1


def _is_plugin() -> bool:
    """Return True if this is a monitoring plugin. All its errors have exit status 3, including those of the command line."""
    return "--nagios" in sys.argv[1:]
