"""The checker of histories tells each fault that is planted into a history without one."""

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support.history import History, Position

_A, _B, _C, _D = [(number // 2, f"id-{number}") for number in range(4)]  # two and two of one time, oldest first


def _row(row: Position, **times: float) -> str:
    return json.dumps({"row": row, **times})


def _page(*rows: Position, at: float, last: bool = False, walk: str = "w") -> str:
    return json.dumps({"walk": walk, "began": at, "ended": at + 0.5, "rows": rows, "last": last})


def _there(*rows: Position) -> list[str]:
    return [_row(row, adding=0, added=0) for row in rows]


def _problems(*lines: str, **arguments: Any) -> list[str]:
    return History.of(lines).problems(**arguments)


_WRITTEN = _there(_A, _B, _C, _D)


def test_a_whole_walk() -> None:
    """Every row once, newest first, over as many pages as it takes, the last of which may be empty: no problem."""
    assert _problems(*_WRITTEN, _page(_D, _C, at=1), _page(_B, _A, at=2, last=True)) == []
    assert _problems(*_WRITTEN, _page(_D, _C, at=1), _page(_B, _A, at=2), _page(at=3, last=True)) == []
    assert _problems(_page(at=1, last=True)) == []
    assert _problems(*_WRITTEN, _page(_D, at=1)) == []  # not finished


def test_lost() -> None:
    """A row that is missing at the start, between two others, between two pages, at the end; each is named once, with its page."""
    lost = [
        ([_page(_C, _B, at=1), _page(_A, at=2, last=True)], f"walk w, page 1: {_D} is lost"),
        ([_page(_D, _B, at=1), _page(_A, at=2, last=True)], f"walk w, page 1: {_C} is lost"),
        ([_page(_D, _C, at=1), _page(_A, at=2, last=True)], f"walk w, page 2: {_B} is lost"),
        ([_page(_D, _C, at=1), _page(_B, at=2, last=True)], f"walk w, page 2: {_A} is lost"),
        ([_page(_D, _C, _B, at=1), _page(at=2, last=True)], f"walk w, page 2: {_A} is lost"),
    ]
    for pages, problem in lost:
        assert _problems(*_WRITTEN, *pages) == [problem]


def test_repeated() -> None:
    """A row that comes twice, on one page, on the next, or on one much later; also under another time."""
    assert _problems(*_WRITTEN, _page(_D, _D, _C, _B, _A, at=1, last=True)) == [f"walk w, page 1: {_D} is repeated"]
    assert _problems(*_WRITTEN, _page(_D, _C, at=1), _page(_C, _B, _A, at=2, last=True)) == [f"walk w, page 2: {_C} is repeated"]
    later = [_page(_D, at=1), _page(_C, at=2), _page(_D, _B, _A, at=3, last=True)]
    assert _problems(*_WRITTEN, *later) == [f"walk w, page 3: {_D} is repeated"]
    moved = (0, _D[1])
    assert f"walk w, page 2: {moved} is repeated" in _problems(
        *_WRITTEN, _page(_D, _C, _B, at=1), _page(_A, moved, at=2, last=True), *_there(moved)
    )


def test_out_of_order() -> None:
    """A row that comes after an older one, or after one of the same time with a smaller id."""
    assert _problems(*_WRITTEN, _page(_D, _C, _A, _B, at=1, last=True)) == [f"walk w, page 1: {_B} is out of order, after {_A}"]
    assert _problems(*_WRITTEN, _page(_D, _B, at=1), _page(_C, _A, at=2, last=True)) == [
        f"walk w, page 1: {_C} is lost",
        f"walk w, page 2: {_C} is out of order, after {_B}",
    ]


def test_rows_that_come_and_go() -> None:
    """A row has to be on the page that passes it if it was there for all of that call, and may not if it was there for none of it."""
    pages = [_page(_D, at=1), _page(_B, at=2, last=True)]
    written = _there(_B, _D)
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
    assert _problems(*written, gone, *with_it) == [f"walk w, page 1: {_C} is not there, or not any more"]
    assert _problems(*written, gone, *with_it, staleness=1) == []
    assert _problems(*written, *with_it) == [f"walk w, page 1: {_C} is not there, or not any more"]
    assert _problems(*written, _row(_C, adding=1.6), *with_it) == [f"walk w, page 1: {_C} is not there, or not any more"]


def test_a_page_without_rows_that_is_not_the_last() -> None:
    """A walk that is asked to go on from nothing."""
    assert _problems(*_WRITTEN, _page(at=1)) == ["walk w, page 1: empty, and not the last"]


def test_walks_are_told_apart() -> None:
    """What one walk saw is nothing to another, however their lines are mixed."""
    pages = [_page(_D, _C, at=1), _page(_D, _C, at=1, walk="v"), _page(_B, _A, at=2, last=True), _page(_B, at=2, walk="v", last=True)]
    assert _problems(*pages, *_WRITTEN) == [f"walk v, page 2: {_A} is lost"]


def test_times() -> None:
    """The walks in progress at a time, and the longest time without an answer, are found."""
    history = History.of([*_WRITTEN, _page(_D, at=1), _page(_C, at=4, last=True), _page(_D, at=1, walk="v")])
    assert history.silence(1, 6) == (1.5, 4.5)
    assert history.silence(1, 10) == (4.5, 10)
    assert history.over(1.5, 4.5) == 1
    assert history.over(1.4, 4) == history.over(2, 4.6) == 0


@given(st.data())
def test_any_row_left_out_or_doubled(data: st.DataObject) -> None:
    """Any rows in any pages are no problem; with a row left out, doubled, or swapped with the next one they are."""
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
        return _problems(*_there(*rows), *pages)

    assert problems(rows) == []
    index = data.draw(st.integers(0, len(rows) - 1))
    assert problems(rows[:index] + rows[index + 1 :])
    assert problems([*rows[:index], rows[index], *rows[index:]])
    if index + 1 < len(rows):
        assert problems([*rows[:index], rows[index + 1], rows[index], *rows[index + 2 :]])
