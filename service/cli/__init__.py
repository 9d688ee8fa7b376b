"""The command `backup-service`: parse, call one function, print."""

import io
import sys

import typer

from service.cli import calls, catalog, imports, servers
from service.cli.environment import print_warnings
from service.errors import Error
from service.settings import check_environment

app = typer.Typer(
    name="backup-service",
    help="Which backups of Greenplum clusters exist: the server, what fills its catalog, and a client.",
    epilog="""\b
Exit status: 0 done; 1 it failed, and says why on standard error;
2 the command line was not understood, or `status --max-age` found something too old.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _check_environment(context: typer.Context) -> None:
    warnings = check_environment()
    if context.invoked_subcommand not in ("dev", "serve"):  # these log them
        print_warnings(warnings)


app.add_typer(servers.commands)
app.add_typer(imports.commands, name="import")
app.add_typer(catalog.commands)
app.add_typer(calls.commands)


def main() -> None:
    """Run the command. An expected error is one message on standard error, with exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if the command was started with it closed
            stream.reconfigure(errors="backslashreplace")  # a locale may lack a character of an id
    try:
        app(prog_name="backup-service")
    except Error as exc:
        from service.cli.output import printable

        print("backup-service:", "\n".join(map(printable, str(exc).split("\n"))), file=sys.stderr)  # the text may be a server's
        sys.exit(1)
