"""A tool's listing in a temporary table of the session, and the numbers of its entries.

The listing is copied in batches, each in its own transaction, so that the session holds no snapshot while the tool lists.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import asyncpg

from service.entry import CLOCK_TOLERANCE, EXCLUDED, Attempt, Deleted, Entry, Listed, Skipped, Unusable
from service.errors import CatalogUnavailable, InvalidListing
from service.postgres.imports.record_import import Counts

# If more of the entries are unusable, the listing is probably not of this tool, or of a version with another format.
_UNUSABLE_SHARE = 0.1

_EXAMPLES_MAX = 20  # unusable entries that the summary names

_BATCH = 500  # entries

_TABLE = """
    CREATE TEMPORARY TABLE listing (
      state text COLLATE "C", label text, name text COLLATE "C", id text COLLATE "C", created_at timestamptz, started_at timestamptz,
      size bigint, method text COLLATE "C", contents text COLLATE "C", database text COLLATE "C", permanent boolean,
      needs text[] COLLATE "C", attempt text COLLATE "C"
    )"""


class Noted(NamedTuple):
    """Entries that a warning applies to."""

    entries: int
    example: str


async def copy_listing(connection: asyncpg.Connection, listing: Iterable[Listed]) -> "Tally":
    """Copy a listing into the temporary table `listing`, and return the numbers of its entries.

    Raises:
        InvalidListing: the input is not a listing, or too many of its entries are unusable.
        CatalogUnavailable: see `check_session`.
    """
    async with connection.transaction():
        await connection.execute(_TABLE)
        tally = Tally(backend_pid=await connection.fetchval("SELECT pg_backend_pid()"))
    records = tally.records(listing)
    while batch := list(itertools.islice(records, _BATCH)):
        async with connection.transaction():
            await check_session(connection, tally)
            await connection.copy_records_to_table("listing", records=batch)
    tally.check()
    await connection.execute("ANALYZE listing")
    return tally


async def check_session(connection: asyncpg.Connection, tally: "Tally") -> None:
    """Check that the transaction runs in the session that has this listing, and not in one with the listing of another import.

    Raises:
        CatalogUnavailable: a pooler has moved the connection to another session.
    """
    if await connection.fetchval("SELECT pg_backend_pid()") != tally.backend_pid:
        raise CatalogUnavailable(
            "an import needs one session of PostgreSQL, but a pooler in transaction mode gave it another: connect directly"
        )


class Tally:
    """Numbers of a listing's entries, counted while they are copied, in bounded memory."""

    def __init__(self, backend_pid: int) -> None:
        self.backend_pid = backend_pid
        self._future = datetime.now(UTC) + CLOCK_TOLERANCE
        self.entries = 0
        self.usable = 0
        self.unusable = 0
        self.examples: list[str] = []
        self._first_unusable: str | None = None
        self.skipped: Counter[str] = Counter()
        self.types: Counter[str] = Counter()
        self.warnings: dict[str, Noted] = {}

    def records(self, listing: Iterable[Listed]) -> Iterator[tuple[object, ...]]:
        """Return the rows of the temporary table."""
        for self.entries, each in enumerate(listing, start=1):
            match each:
                case Entry():
                    self._note(each)
                    yield "usable", each.label, each.name, each.id, *_values(each), None
                case Attempt():
                    self.skipped["failed" if each.state == "failed" else _UNFINISHED] += 1
                    nothing = (None,) * 3
                    yield "attempt", None, each.name, None, None, each.started_at, *nothing, each.database, None, None, each.state
                case Deleted():
                    self.skipped[each.reason] += 1
                    yield _not_usable("deleted", each.name)
                case Skipped():
                    self.skipped[each.reason] += 1
                    yield _not_usable("skipped", each.name)
                case Unusable():
                    self.unusable += 1
                    self._first_unusable = self._first_unusable or each.name
                    if len(self.examples) < _EXAMPLES_MAX:
                        self.examples.append(each.message)
                    yield _not_usable("skipped", each.name)

    def _note(self, entry: Entry) -> None:
        self.usable += 1
        for each in entry.types:
            self.types[each] += 1
        for warning in entry.warnings:
            self._warn(warning, entry)
        if entry.created_at > self._future:
            self._warn("dated in the future: a clock or --timezone is wrong", entry)

    def _warn(self, warning: str, entry: Entry) -> None:
        entries, example = self.warnings.get(warning, (0, entry.label))
        self.warnings[warning] = Noted(entries + 1, example)

    def check(self) -> None:
        """Check that most entries are usable.

        Raises:
            InvalidListing: too many entries are unusable.
        """
        if self.unusable and (not self.usable or self.unusable > self.entries * _UNUSABLE_SHARE):
            allowed = f"more than {_UNUSABLE_SHARE:.0%}" if self.usable else "and none is usable"
            raise InvalidListing(
                f"{self.unusable} of {self.entries} entries are unusable, {allowed}. Nothing was imported. "
                f"The first: {self.examples[0]}. To leave an entry out, name it with --exclude {self._first_unusable or 'NAME'}"
            )

    def counts(self) -> Counts:
        return Counts(self.entries, self.skipped.total() + self.unusable, self.unusable, self.skipped[EXCLUDED])


_UNFINISHED = "not completed: still running, or ended by a crash"


def _values(entry: Entry) -> tuple[object, ...]:
    return (
        *(entry.created_at, entry.started_at, entry.size, entry.method, entry.contents),
        *(entry.database, entry.permanent, entry.needs),
    )


def _not_usable(state: str, name: str | None) -> tuple[object, ...]:
    return state, None, name, *(None,) * 10
