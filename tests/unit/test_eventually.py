"""Waiting for a condition in tests."""

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from tests.support.eventually import eventually


async def test_returns_the_expected_value() -> None:
    """The value is read again until it equals the expected one."""
    numbers = itertools.count()

    assert await eventually(lambda: next(numbers), 3, period_s=0) == 3
    assert next(numbers) == 4


async def test_returns_the_first_value_that_satisfies_a_predicate() -> None:
    """A coroutine function is awaited, and a predicate decides on its value."""
    numbers = itertools.count()

    async def read() -> int:
        return next(numbers)

    assert await eventually(read, lambda number: number > 2, period_s=0) == 3


async def test_reports_the_last_value() -> None:
    """On timeout the error contains the expected and the last value."""
    with pytest.raises(AssertionError, match=r"not 'ready' within 0.01 s; the last value was 'starting'"):
        await eventually(lambda: "starting", "ready", timeout_s=0.01, period_s=0.001)


async def test_reports_a_read_that_does_not_return() -> None:
    """A read that hangs ends at the timeout too."""
    with pytest.raises(AssertionError, match="the last value was 'no value'"):
        await eventually(asyncio.Event().wait, True, timeout_s=0.01)


async def test_raises_errors_of_the_read() -> None:
    """An error that is not retried is raised immediately, even if it is a timeout."""

    async def read() -> str:
        raise TimeoutError("the read's own")

    with pytest.raises(TimeoutError, match="the read's own"):
        await eventually(read, "ready")


async def test_reads_again_after_a_retried_error() -> None:
    """Only the named errors are followed by another read; on timeout the last one is reported."""
    responses: Iterator[Exception | str] = iter([ConnectionRefusedError("refused"), ConnectionResetError("reset"), "ready"])

    def read() -> str:
        response = next(responses)
        if isinstance(response, Exception):
            raise response
        return response

    with pytest.raises(ConnectionResetError):
        await eventually(read, "ready", period_s=0, retried=(ConnectionRefusedError,))
    assert await eventually(read, "ready", period_s=0) == "ready"

    with pytest.raises(AssertionError, match="the last value was ZeroDivisionError"):
        await eventually(lambda: 1 // 0, 1, timeout_s=0.01, retried=(ZeroDivisionError,))
