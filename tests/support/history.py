"""Checks what clients saw while they walked a folder, from the histories that they and the writers of its rows left, and from nothing else.

A history is a file of JSON lines; times are seconds of one clock, positions are pairs [created_at, id], as the contract orders them:

    {"row": position, "adding": t} before a row is written, {"row": position, "added": t} once that was acknowledged
    {"row": position, "removing": t}, {"row": position, "removed": t}
    {"walk": name, "began": t, "ended": t, "rows": [position, ...], "last": bool} a page, in the order in which a walk asked for them

A row is written at most once. One that may or may not be there, because its writing or its removal is under way, was given up, or is not
everywhere yet, may be on a page or not.
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
class _Life:
    """When a row's life began and ended, each from the attempt to the acknowledgement."""

    adding: float = math.inf
    added: float = math.inf
    removing: float = math.inf
    removed: float = math.inf

    def note(self, **times: float) -> None:
        for name, at in times.items():
            assert getattr(self, name) == math.inf, f"{name}: noted before"
            setattr(self, name, at)

    def throughout(self, began: float, ended: float, staleness: float) -> bool:
        return self.added + staleness < began and ended < self.removing

    def ever(self, began: float, ended: float, staleness: float) -> bool:
        return self.adding < ended and began < self.removed + staleness


class Page(NamedTuple):
    """One answer."""

    began: float
    ended: float
    rows: list[Position]
    last: bool


@dataclass
class History:
    """Walks, by name, and the lives of rows."""

    walks: dict[str, list[Page]] = field(default_factory=lambda: defaultdict(list))
    _lives: dict[Position, _Life] = field(default_factory=lambda: defaultdict(_Life))

    @classmethod
    def of(cls, lines: Iterable[str]) -> "History":
        history = cls()
        for line in lines:
            event = json.loads(line)
            if "walk" in event:
                rows = [(row[0], row[1]) for row in event["rows"]]
                history.walks[event["walk"]].append(Page(event["began"], event["ended"], rows, event["last"]))
            else:
                created_at, backup_id = event.pop("row")
                history._lives[created_at, backup_id].note(**event)
        return history

    @classmethod
    def read(cls, *files: Path) -> "History":
        return cls.of(line for file in files for line in file.read_text(encoding="utf-8").splitlines())

    def pages(self) -> list[Page]:
        """Of all walks, by when they were answered."""
        return sorted((page for pages in self.walks.values() for page in pages), key=lambda page: page.ended)

    def over(self, began: float, ended: float) -> int:
        """How many walks were under way for all of a time, and went on after it."""
        return sum(pages[0].ended <= began and ended <= pages[-1].ended for pages in self.walks.values())

    def silence(self, began: float, ended: float) -> tuple[float, float]:
        """Return the longest interval without an answer within these times."""
        answers = [began, *(page.ended for page in self.pages() if began < page.ended < ended), ended]
        return max(itertools.pairwise(answers), key=lambda pair: pair[1] - pair[0])

    def problems(self, *, staleness: float = 0) -> list[str]:
        """What must not be: a row repeated, out of order, lost, or not (any more) there.

        Args:
            staleness: how old an answer may be, in seconds.
        """
        order = sorted(self._lives)
        return [problem for name, pages in self.walks.items() for problem in self._problems(name, pages, order, staleness)]

    def _problems(self, name: str, pages: list[Page], order: list[Position], staleness: float) -> Iterator[str]:
        seen: set[str] = set()
        end = len(order)  # of what the walk has not come to yet, newest last
        before: Position | None = None
        for number, page in enumerate(pages, 1):
            where = f"walk {name}, page {number}"
            for row in page.rows:
                if row[1] in seen:
                    yield f"{where}: {row} is repeated"
                elif before is not None and row > before:
                    yield f"{where}: {row} is out of order, after {before}"
                if row not in self._lives or not self._lives[row].ever(page.began, page.ended, staleness):
                    yield f"{where}: {row} is not there, or not any more"
                seen.add(row[1])
                before = row
            if not page.rows and not page.last:
                yield f"{where}: empty, and not the last"
            begin = 0 if page.last else bisect_left(order, page.rows[-1]) if page.rows else end
            for row in order[begin:end]:
                if row[1] not in seen and self._lives[row].throughout(page.began, page.ended, staleness):
                    yield f"{where}: {row} is lost"
            end = begin
