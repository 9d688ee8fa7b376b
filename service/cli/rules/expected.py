"""Files that name the clusters which must have backups: `cluster [tool [database]] [max-age]` on each line."""

import shlex
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from service.cli.formatting import printable
from service.cli.input_files import read_small
from service.cli.rules.durations import parse_duration
from service.errors import CommandError
from service.postgres.freshness import Freshness

_SIZE_MAX = 4 << 20
_TOOLS = ("walg", "gpbackup")


class Expected(NamedTuple):
    """A cluster, one of its tools, or one of its databases, that must have a restorable backup."""

    cluster_id: str
    tool: str | None
    database: str | None
    max_age: timedelta | None
    """None: the limit of the command line."""

    def matches(self, row: Freshness) -> bool:
        """Return True if this line names the row."""
        return (
            self.cluster_id == row.source_cluster_id
            and self.tool in (None, row.tool)
            and (self.database is None or self.database == row.database)
        )


def read_expected(path: Path) -> list[Expected]:
    """Return the lines of a file.

    Raises:
        CommandError: the file cannot be read, has no line or a malformed line, or names something twice.
    """
    content = read_small(path, name="--expect", limit=_SIZE_MAX)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise CommandError(f"--expect {path}: the file is not UTF-8 text") from None
    found = list(_lines(path, text))
    if not found:
        raise CommandError(f"--expect {path}: the file names no cluster")
    return found


def _lines(path: Path, text: str) -> Iterator[Expected]:
    first: dict[tuple[str, str | None, str | None], int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        try:
            expected = _parse(line)
        except ValueError as exc:
            raise CommandError(f"--expect {path}, line {number}: {exc}") from None
        if expected is None:
            continue
        if (before := first.setdefault(expected[:3], number)) != number:
            raise CommandError(f"--expect {path}, line {number}: the same cluster, tool and database as in line {before}")
        yield expected


def _parse(line: str) -> Expected | None:
    """Return the content of a line; None if it is empty.

    Raises:
        ValueError: the line is malformed.
    """
    words = _words(line)
    if not words:
        return None
    max_age = parse_duration(words[-1]) if len(words) > 1 else None
    if max_age is not None:
        words.pop()
    if len(words) > 3:
        raise ValueError(f"{printable(words[3])[:60]!r} is not a duration such as 26h: a line is `cluster [tool [database]] [max-age]`")
    cluster_id, tool, database = (*words, None, None)[:3]
    if not cluster_id:
        raise ValueError("the cluster is empty")
    if tool is not None and tool not in _TOOLS:
        raise ValueError(f"{printable(tool)[:60]!r} is neither a tool ({', '.join(_TOOLS)}) nor a duration such as 26h")
    if tool == "walg" and database is not None:
        raise ValueError("walg backs up whole clusters: leave the database out")
    return Expected(cluster_id, tool, database, max_age)


def _words(line: str) -> list[str]:
    """Split a line at white space, as a shell does: a name with spaces or `#` is quoted."""
    try:
        return shlex.split(line, comments=True)
    except ValueError as exc:
        raise ValueError(f"{exc}".lower()) from None
