"""Signals that abort a command with an exception, so that it deletes its temporary files."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import typer


@contextlib.contextmanager
def aborted_by(*numbers: signal.Signals) -> Iterator[None]:
    """Raise `typer.Abort` at each of these signals."""
    previous = {number: signal.signal(number, _abort) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _abort(number: int, frame: FrameType | None) -> NoReturn:
    raise typer.Abort
