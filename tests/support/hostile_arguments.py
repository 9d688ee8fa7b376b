"""Program that runs every command with hostile values of each option and argument.

It uses one process, because starting hundreds of processes would take minutes.

`python -m tests.support.hostile_arguments` prints the number of runs, and a line for each one that raised an exception.
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import typer.main

from service import cli
from tests.support.repository import ROOT

HOSTILE = (
    *("", " ", "a\nb", "\x1b[2J", "\udcff", "ж" * 60, "%s%n", "'; DROP TABLE backups;--", "--help"),
    *("9" * 30, "-1", "1e400", "nan", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"),
    *("/", "/dev/zero", "/dev/full", "/proc/self/mem", "../../etc", "x" * 100_000),
)

_VALUES = {
    "folder_id": "f1",
    "cluster_id": "c1",
    "timezone": "UTC",
    "history": str(ROOT / "samples" / "gpbackup_history.db"),
    "file": str(ROOT / "samples" / "walg-backup-list.json"),
    "backup_id": "b1",
}


def _commands(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    if subcommands := getattr(command, "commands", None):
        for name, each in subcommands.items():
            yield from _commands(each, *names, name)
    else:
        yield names, command


def _given(parameter: Any, value: str) -> list[str]:
    return ["--", value] if parameter.param_type_name == "argument" else [f"{parameter.opts[0]}={value}"]


def _command_lines(commands: Any) -> Iterator[list[str]]:
    for names, command in _commands(commands):
        if names[0] in ("serve", "dev"):  # they have no options and do not return
            continue
        for hostile in (parameter for parameter in command.params if not getattr(parameter, "is_flag", False)):
            others = [each for each in command.params if each is not hostile and each.name in _VALUES]
            for value in HOSTILE:
                given = [(hostile, value), *((each, _VALUES[each.name]) for each in others)]
                options = [word for each, text in given if each.param_type_name != "argument" for word in _given(each, text)]
                arguments = [word for each, text in given if each.param_type_name == "argument" for word in _given(each, text)]
                yield [*names, *options, *arguments]


def _run(line: list[str]) -> None:
    """Run a command line, and print it if the command raises an exception or exits with an unknown status."""
    sys.argv = ["backup-service", *line]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            failure = None if (status := cli.run()) in (0, 1, 2) else f"status {status}"
        except BaseException as exc:
            failure = repr(exc)
    if failure or "Traceback" in output.getvalue():
        print(ascii(line)[:200], failure, output.getvalue()[-500:])


def main() -> None:
    """Run all command lines against the database and the service of the environment."""
    commands = typer.main.get_command(cli.app)
    runs = 0
    with mock.patch.object(typer.main, "get_command", return_value=commands):  # which each run would build again, in half of its time
        for line in _command_lines(commands):
            _run(line)
            runs += 1
    print(runs, "runs")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # values that are file names are written there
        main()
