"""The command `backup-service` in a process of its own."""

import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


RunCommand = Callable[..., Awaitable[Done]]


def environment(**settings: str) -> dict[str, str]:
    """Return the variables of a process under test: these settings, and none of the machine's except coverage's."""
    coverage = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8"} | coverage | settings
