"""The checker of histories finds each fault that is injected into a correct history."""

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support.history import History, Position

_A, _B, _C, _D = [(number // 2, f"id-{number}") for number in range(4)]  # oldest first; the first two and the last two have the same time


def _row(row: Position, **times: float) -> str:
    return json.dumps({"row": row, **times})


def _page(*rows: Position, at: float, last: bool = False, walk: str = "w") -> str:
    return json.dumps({"walk": walk, "began": at, "ended": at + 0.5, "rows": rows, "last": last})


def _present(*rows: Position) -> list[str]:
    return [_row(row, adding=0, added=0) for row in rows]


def _problems(*lines: str, **arguments: Any) -> list[str]:
    return History.of(lines).problems(**arguments)


_WRITTEN = _present(_A, _B, _C, _D)


def test_correct_walk() -> None:
    """A walk that contains every row once, newest first, is correct; its last page may be empty, and it may be unfinished."""
    assert _problems(*_WRITTEN, _page(_D, _C, at=1), _page(_B, _A, at=2, last=True)) == []
    assert _problems(*_WRITTEN, _page(_D, _C, at=1), _page(_B, _A, at=2), _page(at=3, last=True)) == []
    assert _problems(_page(at=1, last=True)) == []
    assert _problems(*_WRITTEN, _page(_D, at=1)) == []  # not finished


def test_lost_row() -> None:
    """A missing row is reported once, with its page, if it is missing at the start, inside a page, between pages or at the end."""
    lost = [
        ([_page(_C, _B, at=1), _page(_A, at=2, last=True)], f"walk w, page 1: {_D} is lost"),
        ([_page(_D, _B, at=1), _page(_A, at=2, last=True)], f"walk w, page 1: {_C} is lost"),
        ([_page(_D, _C, at=1), _page(_A, at=2, last=True)], f"walk w, page 2: {_B} is lost"),
        ([_page(_D, _C, at=1), _page(_B, at=2, last=True)], f"walk w, page 2: {_A} is lost"),
        ([_page(_D, _C, _B, at=1), _page(at=2, last=True)], f"walk w, page 2: {_A} is lost"),
    ]
    for pages, problem in lost:
        assert _problems(*_WRITTEN, *pages) == [problem]


def test_repeated_row() -> None:
    """A row that occurs twice is reported, on the same page, the next or a later one, even if its time has changed."""
    assert _problems(*_WRITTEN, _page(_D, _D, _C, _B, _A, at=1, last=True)) == [f"walk w, page 1: {_D} is repeated"]
    assert _problems(*_WRITTEN, _page(_D, _C, at=1), _page(_C, _B, _A, at=2, last=True)) == [f"walk w, page 2: {_C} is repeated"]
    later = [_page(_D, at=1), _page(_C, at=2), _page(_D, _B, _A, at=3, last=True)]
    assert _problems(*_WRITTEN, *later) == [f"walk w, page 3: {_D} is repeated"]
    moved = (0, _D[1])
    assert f"walk w, page 2: {moved} is repeated" in _problems(
        *_WRITTEN, _page(_D, _C, _B, at=1), _page(_A, moved, at=2, last=True), *_present(moved)
    )


def test_row_out_of_order() -> None:
    """A row after an older one, or after one of the same time with a smaller id, is reported."""
    assert _problems(*_WRITTEN, _page(_D, _C, _A, _B, at=1, last=True)) == [f"walk w, page 1: {_B} is out of order, after {_A}"]
    assert _problems(*_WRITTEN, _page(_D, _B, at=1), _page(_C, _A, at=2, last=True)) == [
        f"walk w, page 1: {_C} is lost",
        f"walk w, page 2: {_C} is out of order, after {_B}",
    ]


def test_rows_added_and_removed() -> None:
    """A page must contain each row that existed during the whole call, and must not contain a row that existed at no time of the call."""
    pages = [_page(_D, at=1), _page(_B, at=2, last=True)]
    written = _present(_B, _D)
    for times in (
        {"adding": 2.1},
        {"adding": 0, "added": 2.1},
        {"adding": 0, "added": 0, "removing": 2.1},
        {"adding": 0, "added": 0, "removing": 0},
    ):
        assert _problems(*written, _row(_C, **times), *pages) == []
    assert _problems(*written, _row(_C, adding=0, added=1.7), *pages) == [f"walk w, page 2: {_C} is lost"]
    assert _problems(*written, _row(_C, adding=0, added=1.7, removing=2.6), *pages) == [f"walk w, page 2: {_C} is lost"]
    assert _problems(*written, _row(_C, adding=0, added=1.7), *pages, staleness=1) == []
    gone = _row(_C, adding=0, added=0, removing=0.5, removed=0.7)
    with_it = [_page(_D, _C, at=1), _page(_B, at=2, last=True)]
    assert _problems(*written, gone, *with_it) == [f"walk w, page 1: {_C} does not exist, or no longer"]
    assert _problems(*written, gone, *with_it, staleness=1) == []
    assert _problems(*written, *with_it) == [f"walk w, page 1: {_C} does not exist, or no longer"]
    assert _problems(*written, _row(_C, adding=1.6), *with_it) == [f"walk w, page 1: {_C} does not exist, or no longer"]


def test_empty_page_before_the_last() -> None:
    """A page without rows that has a page token is reported."""
    assert _problems(*_WRITTEN, _page(at=1)) == ["walk w, page 1: empty, and not the last page"]


def test_interleaved_walks() -> None:
    """Each walk is checked separately, in any order of their lines."""
    pages = [_page(_D, _C, at=1), _page(_D, _C, at=1, walk="v"), _page(_B, _A, at=2, last=True), _page(_B, at=2, walk="v", last=True)]
    assert _problems(*pages, *_WRITTEN) == [f"walk v, page 2: {_A} is lost"]


def test_intervals() -> None:
    """The history returns the walks in progress over an interval, and the longest interval without a response."""
    history = History.of([*_WRITTEN, _page(_D, at=1), _page(_C, at=4, last=True), _page(_D, at=1, walk="v")])
    assert history.longest_gap(1, 6) == (1.5, 4.5)
    assert history.longest_gap(1, 10) == (4.5, 10)
    assert history.walks_over(1.5, 4.5) == 1
    assert history.walks_over(1.4, 4) == history.walks_over(2, 4.6) == 0


@given(st.data())
def test_any_injected_fault(data: st.DataObject) -> None:
    """Any rows in any pages are correct; a row that is left out, doubled or swapped with the next one is reported."""
    rows = sorted(
        data.draw(st.sets(st.tuples(st.integers(0, 3), st.text("ab", min_size=1, max_size=4)), min_size=2, max_size=12)), reverse=True
    )
    rows = list({row[1]: row for row in rows}.values())
    rows.sort(reverse=True)
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=4))

    def problems(walked: list[Position]) -> list[str]:
        edges = sorted({0, *cuts, len(walked)} & set(range(len(walked) + 1)))
        parts = [walked[begin:end] for begin, end in itertools.pairwise(edges)] or [[]]
        pages = [_page(*part, at=number, last=number == len(parts)) for number, part in enumerate(parts, 1)]
        return _problems(*_present(*rows), *pages)

    assert problems(rows) == []
    index = data.draw(st.integers(0, len(rows) - 1))
    assert problems(rows[:index] + rows[index + 1 :])
    assert problems([*rows[:index], rows[index], *rows[index:]])
    if index + 1 < len(rows):
        assert problems([*rows[:index], rows[index + 1], rows[index], *rows[index + 2 :]])
