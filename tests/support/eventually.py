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
    last: object = _NO_VALUE
    try:
        async with asyncio.timeout(timeout_s) as limit:
            while True:
                try:
                    value = read()
                    last = await value if inspect.isawaitable(value) else value
                    if expected(last) if callable(expected) else last == expected:
                        return last
                except retried as exc:
                    last = exc
                await asyncio.sleep(period_s)
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(f"not {_name(expected)} within {timeout_s} s; the last value was {last!r}") from None


def _name(expected: object) -> str:
    return getattr(expected, "__qualname__", None) or repr(expected)
