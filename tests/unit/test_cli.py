"""Help, version and errors of the command."""

import errno
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from service import VERSION, cli
from service.cli import app, streams
from service.cli.status import nagios


def _commands(command: Any, *names: str) -> Iterator[tuple[str, Any]]:
    if subcommands := getattr(command, "commands", None):
        for name, each in subcommands.items():
            yield from _commands(each, *names, name)
    else:
        yield " ".join(names), command


_COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_all_commands_are_found() -> None:
    """The tests of this module cover every command."""
    assert set(_COMMANDS) == {
        *("dev", "serve", "roles", "migrate", "import walg", "import gpbackup", "status", "chain", "report", "remove-cluster"),
        *("list", "get", "health"),
    }


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_has_an_example(name: str) -> None:
    """The help of each command ends with an example of that command, which the command can parse."""
    command = _COMMANDS[name]
    assert command.help
    _, colon, example = command.epilog.partition("Example:\n")
    assert colon
    words = shlex.split(example.replace("\\\n", " ").rpartition("|")[2])
    arguments = words[words.index("backup-service") + 1 :]
    assert " ".join(arguments).startswith(name)
    command.make_context(name, arguments[len(name.split()) :])


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_option_has_a_help_text(name: str) -> None:
    """Each option and argument has a help text."""
    for parameter in _COMMANDS[name].params:
        assert re.fullmatch(r"[A-Z`a-z].+\.", parameter.help), parameter.name


@pytest.mark.parametrize("name", ["", "import", *_COMMANDS])
def test_short_help_option(name: str) -> None:
    """`-h` prints the same help as `--help` for the program, each group and each command, at 80 columns."""
    short, long = (CliRunner().invoke(app, [*name.split(), option], env={"COLUMNS": "80"}) for option in ("-h", "--help"))
    assert (short.exit_code, short.output) == (0, long.output)
    assert max(len(line) for line in short.output.partition("Example:")[0].splitlines()) <= 80


def test_version() -> None:
    """`--version` prints the name and the version."""
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"backup-service {VERSION}\n")


def test_warn_age_needs_nagios() -> None:
    """`status --warn-age` without --nagios is an error of the command line."""
    done = CliRunner().invoke(app, ["status", "--warn-age", "26h"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Invalid value for --warn-age: requires --nagios" in done.stderr


def test_unexpected_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError that is not one of standard output is raised, so that it is not reported as one."""

    def fail() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/none")

    monkeypatch.setattr(streams, "prepare", lambda: None)
    monkeypatch.setattr(cli, "run", fail)
    with pytest.raises(FileNotFoundError, match="/none"):
        cli.main()


@pytest.mark.parametrize(
    ("error", "message", "has_traceback"),
    [
        (KeyboardInterrupt(), "interrupted", False),
        (typer.Abort(), "interrupted", False),
        (ZeroDivisionError("hunter2"), "unexpected error: ZeroDivisionError", True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/none"), "unexpected error: FileNotFoundError", True),
    ],
)
def test_errors_of_a_plugin(capsys: pytest.CaptureFixture[str], error: BaseException, message: str, *, has_traceback: bool) -> None:
    """Ctrl-C and unexpected errors of a monitoring plugin are one line on standard output, and exit with 3."""

    def fail(**_: object) -> None:
        raise error

    assert nagios.run(fail) == 3
    captured = capsys.readouterr()
    assert captured.out == f"BACKUPS UNKNOWN - {message}\n"
    assert ("Traceback" in captured.err) is has_traceback


def test_output_error_of_a_plugin() -> None:
    """A monitoring plugin does not report an error of standard output on standard output."""

    def fail(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        nagios.run(fail)
