"""Names of environment variables that begin with `BACKUPS_`, and the check that finds misspelt ones."""

import itertools
import re
from collections.abc import Iterable

from service.errors import InvalidSettings

ENV_PREFIX = "BACKUPS_"

# Of the client commands.
_COMMANDS = ("ADDRESS", "CA_FILE", "SERVER_NAME", "TOKEN", "TOKEN_FILE")

# Of the Compose files, the scripts of deploy/ and the tests of the deployment.
_DEPLOYMENT = (
    *("CREDENTIALS", "GRAFANA_PORT", "PORT", "POSTGRES_PORT", "PROMETHEUS_PORT", "PUBLIC_HOST", "PUBLIC_PORT", "TLS_ADDRESS"),
    *("IMPORT_PASSWORD", "OWNER_PASSWORD", "SERVICE_PASSWORD"),
    *("IMPORT_PASSWORD_FILE", "OWNER_PASSWORD_FILE", "SERVICE_PASSWORD_FILE"),
)

# A misspelt name that begins like this would silently turn off a protection.
_STRICT = ("TLS_", "AUTH", "JW", "ALLOW_")
_MAX_EDITS = 2

# Kubernetes sets them in every pod for each Service, here one whose name begins with "backups".
_SERVICE_LINK = re.compile(r"(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")


def known_names(settings: Iterable[str]) -> set[str]:
    """Return every known name, with its prefix; `settings` are the names of the fields of `Settings`."""
    return {ENV_PREFIX + name.upper() for name in (*settings, *_COMMANDS, *_DEPLOYMENT)}


def check_names(environment: Iterable[str], known: set[str]) -> list[str]:
    """Return a warning for each unknown name.

    Raises:
        InvalidSettings: unknown names that are probably misspelt, a line for each.
    """
    warnings, errors = [], []
    for name in sorted(environment):
        if not name.startswith(ENV_PREFIX) or name in known or _SERVICE_LINK.fullmatch(name.removeprefix(ENV_PREFIX)):
            continue
        edits = {other: _edits(name, other) for other in sorted(known)}
        if name.removeprefix(ENV_PREFIX).startswith(_STRICT) or min(edits.values()) <= _MAX_EDITS:
            errors.append(f"{name} is not a setting: the nearest one is {_nearest(name, edits)}")
        else:
            warnings.append(f"{name} is not a setting, and is ignored")
    if errors:
        raise InvalidSettings("\n".join(errors))
    return warnings


def _nearest(name: str, edits: dict[str, int]) -> str:
    """Return the name with the fewest edits; if those are many, the one with the longest common beginning."""
    if min(edits.values()) <= _MAX_EDITS:
        return min(edits, key=lambda other: edits[other])
    return max(edits, key=lambda other: (_common_beginning(name, other), -edits[other]))


def _common_beginning(one: str, other: str) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _edits(one: str, other: str) -> int:
    """Return the Levenshtein distance."""
    row = list(range(len(other) + 1))
    for number, left in enumerate(one, start=1):
        above, row[0] = row[0], number
        for column, right in enumerate(other, start=1):
            above, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, above + (left != right))
    return row[-1]
