"""Program that runs commands in turn, each in a fork of its own process.

The commands have the standard streams that the interpreter was started with, which may be closed or full. The interpreter starts once.

`python -m tests.support.commands_in_turn STATUSES COMMAND...` writes the exit statuses to the file STATUSES. Each command is a JSON array.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import service.cli  # noqa: F401 - imported once, before the forks


def _status(arguments: list[str]) -> int:
    """Run a command, and return its exit status."""
    pid = os.fork()
    if pid == 0:
        sys.argv[1:] = arguments
        runpy.run_module("service", run_name="__main__", alter_sys=True)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    _, file, *commands = sys.argv
    Path(file).write_text(json.dumps([_status(json.loads(command)) for command in commands]), encoding="utf-8")
