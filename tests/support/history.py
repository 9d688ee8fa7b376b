"""Checker of the pages that clients received while the rows of a folder changed.

It reads only the histories that the clients and the writer recorded. A history is a file of JSON lines. Times are seconds of one clock.
Positions are pairs [created_at, id], in the order of the contract.

    {"row": position, "adding": t}    before a row is inserted
    {"row": position, "added": t}     after the insert was acknowledged
    {"row": position, "removing": t}, {"row": position, "removed": t}    the same for its removal
    {"walk": name, "began": t, "ended": t, "rows": [position, ...], "last": bool}    a page, in the order of the walk's requests

A row is inserted at most once. A page may contain a row or not while its insert or removal is in progress, was given up, or has not
reached every standby.
"""

import itertools
import json
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

Position: TypeAlias = tuple[int, str]


@dataclass
class _Lifetime:
    """Times of the attempt and the acknowledgement of a row's insert and removal."""

    adding: float = math.inf
    added: float = math.inf
    removing: float = math.inf
    removed: float = math.inf

    def record(self, **times: float) -> None:
        for name, at in times.items():
            assert getattr(self, name) == math.inf, f"{name} is recorded twice"
            setattr(self, name, at)

    def must_be_seen(self, began: float, ended: float, staleness: float) -> bool:
        """Return True if the row existed during the whole call."""
        return self.added + staleness < began and ended < self.removing

    def may_be_seen(self, began: float, ended: float, staleness: float) -> bool:
        """Return True if the row may have existed at some time of the call."""
        return self.adding < ended and began < self.removed + staleness


class Page(NamedTuple):
    """One page of a walk, and when it was requested and answered."""

    began: float
    ended: float
    rows: list[Position]
    last: bool


@dataclass
class History:
    """Walks by name, and the lifetimes of rows."""

    walks: dict[str, list[Page]] = field(default_factory=lambda: defaultdict(list))
    _lifetimes: dict[Position, _Lifetime] = field(default_factory=lambda: defaultdict(_Lifetime))

    @classmethod
    def of(cls, lines: Iterable[str]) -> "History":
        """Parse the lines of any number of files."""
        history = cls()
        for line in lines:
            event = json.loads(line)
            if "walk" in event:
                rows = [(row[0], row[1]) for row in event["rows"]]
                history.walks[event["walk"]].append(Page(event["began"], event["ended"], rows, event["last"]))
            else:
                created_at, backup_id = event.pop("row")
                history._lifetimes[created_at, backup_id].record(**event)
        return history

    @classmethod
    def read(cls, *files: Path) -> "History":
        """Read files."""
        return cls.of(line for file in files for line in file.read_text(encoding="utf-8").splitlines())

    def pages(self) -> list[Page]:
        """Return the pages of all walks in the order of their responses."""
        return sorted((page for pages in self.walks.values() for page in pages), key=lambda page: page.ended)

    def walks_over(self, began: float, ended: float) -> int:
        """Return the number of walks that started before an interval and continued after it."""
        return sum(pages[0].ended <= began and ended <= pages[-1].ended for pages in self.walks.values())

    def longest_gap(self, began: float, ended: float) -> tuple[float, float]:
        """Return the longest part of an interval in which no client received a response, as start and end."""
        responses = [began, *(page.ended for page in self.pages() if began < page.ended < ended), ended]
        return max(itertools.pairwise(responses), key=lambda pair: pair[1] - pair[0])

    def problems(self, *, staleness: float = 0) -> list[str]:
        """Return each row that a page repeats, has out of order, misses, or contains although it does not exist.

        Args:
            staleness: the allowed age of a response's data, in seconds.
        """
        order = sorted(self._lifetimes)
        return [problem for name, pages in self.walks.items() for problem in self._problems(name, pages, order, staleness)]

    def _problems(self, name: str, pages: list[Page], order: list[Position], staleness: float) -> Iterator[str]:
        seen: set[str] = set()
        end = len(order)  # of the rows that the walk has not reached, newest last
        before: Position | None = None
        for number, page in enumerate(pages, 1):
            where = f"walk {name}, page {number}"
            for row in page.rows:
                if row[1] in seen:
                    yield f"{where}: {row} is repeated"
                elif before is not None and row > before:
                    yield f"{where}: {row} is out of order, after {before}"
                if row not in self._lifetimes or not self._lifetimes[row].may_be_seen(page.began, page.ended, staleness):
                    yield f"{where}: {row} does not exist, or no longer"
                seen.add(row[1])
                before = row
            if not page.rows and not page.last:
                yield f"{where}: empty, and not the last page"
            begin = 0 if page.last else bisect_left(order, page.rows[-1]) if page.rows else end
            for row in order[begin:end]:
                if row[1] not in seen and self._lifetimes[row].must_be_seen(page.began, page.ended, staleness):
                    yield f"{where}: {row} is lost"
            end = begin
