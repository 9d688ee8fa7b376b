"""The settings of commands that are not servers: warnings go to standard error."""

import sys
from collections.abc import Iterable

from service.settings import Settings


def read_settings() -> Settings:
    """Read the settings, and print a warning for each one that is not safe.

    Raises:
        InvalidSettings: see `Settings.read`.
    """
    settings = Settings.read()
    print_warnings(settings.database_warnings)
    return settings


def print_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print("backup-service: warning:", warning, file=sys.stderr)
