"""Tables with aligned columns, printed while their rows arrive."""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Row = TypeVar("Row")

_GAP = 2
_MAX_WIDTH = 60  # of a column; ids have at most 50 characters, and a longer text of another service widens its own row only


@dataclass(frozen=True, kw_only=True)
class Column(Generic[Row]):
    """A column: its header and the text of each row."""

    header: str
    text: Callable[[Row], str]
    align: Literal["left", "right"] = "left"
    min_width: int = 0
    """Room for later rows, because the widths are those of the first rows."""
    dropped: int = 0
    """A narrow terminal leaves out the column with the lowest number first, of equal ones the leftmost. A column with 0 is always shown."""


class Table(Generic[Row]):
    """Lines of a table. All rows have the columns and widths that the first rows need."""

    def __init__(self, columns: Sequence[Column[Row]], *, max_width: int | None = None) -> None:
        """Keep all columns. The first call of `lines` removes those that do not fit into `max_width` characters."""
        self._columns = list(columns)
        self._max_width = max_width
        self._widths: list[int] = []
        self.left_out: list[str] = []
        """Headers of the columns that did not fit."""

    def lines(self, rows: Iterable[Row]) -> Iterator[str]:
        """Return a line for each row; the first call adds the header."""
        rows = list(rows)
        if not self._widths:
            self._fit(rows)
            yield self._line([column.header for column in self._columns])
        for row in rows:
            yield self._line([column.text(row) for column in self._columns])

    def _fit(self, rows: list[Row]) -> None:
        while True:
            self._widths = [self._width(column, rows) for column in self._columns]
            candidates = [column for column in self._columns if column.dropped]
            if self._max_width is None or not candidates or sum(self._widths) + _GAP * (len(self._widths) - 1) <= self._max_width:
                return
            first = min(candidates, key=lambda column: column.dropped)
            self._columns.remove(first)
            self.left_out.append(first.header)

    @staticmethod
    def _width(column: Column[Row], rows: list[Row]) -> int:
        return min(_MAX_WIDTH, max(len(column.header), column.min_width, *(len(column.text(row)) for row in rows), 0))

    def _line(self, cells: list[str]) -> str:
        """Align the cells. After a cell that is too long, the row returns to its columns as soon as there is room."""
        line, start = "", 0
        for column, width, cell in zip(self._columns, self._widths, cells, strict=True):
            left = start if column.align == "left" else start + width - len(cell)
            line += " " * max(left - len(line), _GAP if line else 0) + cell
            start += width + _GAP
        return line.rstrip()


def terminal_width() -> int | None:
    """Return the width of the terminal that standard output is; None for a pipe or file, which get all columns."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_left_out(table: "Table[Row]") -> None:
    """Report the columns that did not fit on standard error."""
    if table.left_out:
        print(
            f"Left out, because the terminal is too narrow: {', '.join(table.left_out)}. Use --json or a pipe to see all.", file=sys.stderr
        )
