"""Readiness without a database: slow checks, errors, shutdown, and logged events."""

import asyncio
import json
import socket
import time
from datetime import timedelta
from typing import Any

import pytest

from service.api.health import Health
from service.api.readiness import NotReady, Readiness
from service.errors import CatalogUnavailable
from tests.support.eventually import eventually

_PERIOD = timedelta(seconds=0.1)


class _Checked(Readiness):
    """A readiness whose result the test chooses."""

    def __init__(self, health: Health, *, timeout: timedelta = timedelta(seconds=10)) -> None:
        unused: Any = None
        super().__init__(
            health, unused, unused, max_replication_lag=timedelta(0), period=_PERIOD, timeout=timeout, keys_problem=lambda: None
        )
        self.result: NotReady | Exception | None = None

    async def find_reason(self) -> NotReady | None:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class _Hanging(_Checked):
    """A readiness whose checks never finish."""

    async def find_reason(self) -> NotReady | None:
        await asyncio.Event().wait()
        return None


def _events(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str | None]]:
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [(line["event"], line.get("reason")) for line in lines]


async def test_reasons_follow_the_checks(capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is that of the last check; the log has a line for each change of it, and none for a check that changes nothing."""
    health = Health()
    readiness = _Checked(health)
    assert (readiness.reason, health.serving) == (NotReady.STARTING, False)
    for result, reason in [
        (NotReady.SCHEMA_TOO_OLD, NotReady.SCHEMA_TOO_OLD),
        (None, None),
        (CatalogUnavailable("the host is down"), NotReady.CATALOG_UNAVAILABLE),
        (CatalogUnavailable("the password is wrong"), NotReady.CATALOG_UNAVAILABLE),
        (ValueError("secret"), NotReady.UNEXPECTED_ERROR),
        (TimeoutError(), NotReady.CATALOG_UNAVAILABLE),
    ]:
        readiness.result = result
        for _ in range(2):
            await readiness.check()
            assert (readiness.reason, health.serving) == (reason, reason is None)
    assert _events(capsys) == [
        ("not serving", NotReady.SCHEMA_TOO_OLD),
        ("serving", None),
        ("not serving", NotReady.CATALOG_UNAVAILABLE),
        ("not serving", NotReady.CATALOG_UNAVAILABLE),
        ("not serving", NotReady.UNEXPECTED_ERROR),
        ("not serving", NotReady.CATALOG_UNAVAILABLE),
    ]


async def test_slow_check(capsys: pytest.CaptureFixture[str]) -> None:
    """A check that takes longer than its period makes the replica not ready, with that reason, until the check finishes."""
    release = asyncio.Event()

    class Slow(_Checked):
        async def find_reason(self) -> NotReady | None:
            await release.wait()
            return None

    health = Health()
    readiness = Slow(health)
    checking = asyncio.ensure_future(readiness.check())
    await eventually(lambda: readiness.reason, NotReady.CHECK_SLOW)
    release.set()
    await checking
    assert health.serving
    assert _events(capsys) == [("not serving", NotReady.CHECK_SLOW), ("serving", None)]


async def test_timeout_of_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    """A check that never finishes ends after its timeout, which the log reports as the cause."""
    readiness = _Hanging(Health(), timeout=timedelta(seconds=0.05))
    async with asyncio.timeout(10):
        await readiness.check()
    assert readiness.reason is NotReady.CATALOG_UNAVAILABLE
    [_, logged] = map(json.loads, capsys.readouterr().err.splitlines())
    assert logged["error"][0]["message"] == "PostgreSQL did not answer in time"


async def test_repeated_timeouts(capsys: pytest.CaptureFixture[str]) -> None:
    """If checks time out one after the other, each reason is logged once: the next check that is slow does not change the reason."""
    readiness = _Hanging(Health(), timeout=timedelta(seconds=0.05))
    for _ in range(3):
        await readiness.check()
    assert _events(capsys) == [("not serving", NotReady.CHECK_SLOW), ("not serving", NotReady.CATALOG_UNAVAILABLE)]


async def test_shutdown_is_final(capsys: pytest.CaptureFixture[str]) -> None:
    """A check that ends after shutdown has begun does not make the replica ready again."""
    health = Health()
    readiness = _Checked(health)
    await readiness.check()
    readiness.enter_graceful_shutdown()
    await readiness.check()
    assert (readiness.reason, health.serving) == (NotReady.SHUTTING_DOWN, False)
    assert _events(capsys) == [("serving", None), ("not serving", NotReady.SHUTTING_DOWN)]


async def test_process_without_cpu() -> None:
    """After a time without CPU, a process reads the database's response that has arrived before it decides that the check is slow."""
    loop = asyncio.get_running_loop()
    states: list[bool] = []

    class Recorded(Health):
        def set(self, *, serving: bool) -> None:
            states.append(serving)

    def pause() -> None:
        theirs.send(b"1")
        time.sleep(3 * _PERIOD.total_seconds())

    class Paused(_Checked):
        async def find_reason(self) -> NotReady | None:
            loop.call_soon(pause)  # while this waits for the response
            await loop.sock_recv(ours, 1)
            for _ in range(5):  # a query takes several turns of the loop to read its response
                await asyncio.sleep(0)
            return None

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        readiness = Paused(Recorded())
        for _ in range(3):
            await readiness.check()
    assert states == [True] * 3
