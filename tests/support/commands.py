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
    """What a process of ours gets: the settings given, and nothing else of the machine's."""
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8"} | settings
