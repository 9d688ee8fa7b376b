"""The command `backup-service` in its own process."""

import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple


class Done(NamedTuple):
    """Result of a command."""

    status: int
    stdout: str
    stderr: str


RunCommand = Callable[..., Awaitable[Done]]

DATABASE_COMMANDS = (
    ["migrate"],
    ["status"],
    ["import", "walg", "--folder-id", "f", "--cluster-id", "c"],
    ["remove-cluster", "--cluster-id", "c", "--yes"],
)
"""Arguments of commands that connect to PostgreSQL."""


def environment(**settings: str) -> dict[str, str]:
    """Return the environment of a process under test: these settings, the one of `TEST_CONCURRENT_ACCEPT`, and variables of coverage.

    Other variables of the machine must not affect tests.
    """
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")} | unmeasured_environment(**settings)


def unmeasured_environment(**settings: str) -> dict[str, str]:
    """Return `environment` without coverage, which doubles the CPU of a process and adds to its memory."""
    accept = os.environ.get("TEST_CONCURRENT_ACCEPT")
    chosen = {"BACKUPS_CONCURRENT_ACCEPT": accept} if accept else {}
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8"} | chosen | settings
