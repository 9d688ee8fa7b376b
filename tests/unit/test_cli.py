"""The command's own help."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from service.cli import app


def _commands(command: Any, *names: str) -> Iterator[tuple[str, Any]]:
    if subcommands := getattr(command, "commands", None):
        for name, each in subcommands.items():
            yield from _commands(each, *names, name)
    else:
        yield " ".join(names), command


_COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_all_commands_are_found() -> None:
    """The commands that the tests below look at are all there are."""
    assert set(_COMMANDS) == {
        *("dev", "serve", "migrate", "import walg", "import gpbackup", "status", "forget", "list", "get", "health"),
    }


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_has_an_example(name: str) -> None:
    """Each command's help ends with an example of that command, which the command itself understands."""
    command = _COMMANDS[name]
    assert command.help
    _, colon, example = command.epilog.partition("Example:\n")
    assert colon
    words = shlex.split(example.replace("\\\n", " ").rpartition("|")[2])
    arguments = words[words.index("backup-service") + 1 :]
    assert " ".join(arguments).startswith(name)
    command.make_context(name, arguments[len(name.split()) :])


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    """Each option and argument has a text."""
    for parameter in _COMMANDS[name].params:
        assert re.fullmatch(r"[A-Z`a-z].+\.", parameter.help), parameter.name
