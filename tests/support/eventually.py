"""Waiting for a condition in tests."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

_T = TypeVar("_T")
_NO_VALUE = "no value"


@overload
async def eventually(
    read: Callable[[], Awaitable[_T]],
    expected: _T | Callable[[_T], object],
    *,
    timeout_s: float = ...,
    period_s: float = ...,
    retried: tuple[type[Exception], ...] = ...,
) -> _T: ...


@overload
async def eventually(
    read: Callable[[], _T],
    expected: _T | Callable[[_T], object],
    *,
    timeout_s: float = ...,
    period_s: float = ...,
    retried: tuple[type[Exception], ...] = ...,
) -> _T: ...


async def eventually(
    read: Callable[[], Any],
    expected: Any,
    *,
    timeout_s: float = 10,
    period_s: float = 0.02,
    retried: tuple[type[Exception], ...] = (),
) -> Any:
    """Call `read` every `period_s` until its value is `expected`, and return that value.

    Args:
        read: a function or coroutine function without arguments.
        expected: a value, or a predicate of the value.
        retried: errors of `read` after which it is called again.

    Raises:
        AssertionError: the value was not as expected within `timeout_s`; the message contains the last value or error.
    """
    polled = _Polled(read, expected, retried)
    try:
        async with asyncio.timeout(timeout_s) as limit:
            while not await polled.is_expected():
                await asyncio.sleep(period_s)
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(f"not {_name(expected)} within {timeout_s} s; the last value was {polled.last!r}") from None
    return polled.last


class _Polled:
    """A value that is read repeatedly."""

    def __init__(self, read: Callable[[], Any], expected: Any, retried: tuple[type[Exception], ...]) -> None:
        self._read, self._expected, self._retried = read, expected, retried
        self.last: Any = _NO_VALUE

    async def is_expected(self) -> bool:
        """Read the value once. An error that is retried is a value that is not expected."""
        try:
            value = self._read()
            self.last = await value if inspect.isawaitable(value) else value
            return bool(self._expected(self.last) if callable(self._expected) else self.last == self._expected)
        except self._retried as exc:
            self.last = exc
            return False


def _name(expected: object) -> str:
    return getattr(expected, "__qualname__", None) or repr(expected)
