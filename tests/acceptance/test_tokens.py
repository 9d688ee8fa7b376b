"""Tokens that are not good, and an issuer that is gone.

Mitigations: one family of algorithms, and `exp`, `iss` and `aud` required (service/api/authentication.py); keys are read in the background,
however many unknown ones are named, at least ten seconds apart, and the last good ones stay (service/api/jwks.py).
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from grpc import StatusCode

from service import pb
from tests.support.deployment import Deployment, deployed
from tests.support.guarantees import Measure
from tests.support.tokens import BAD_TOKENS, Issuer, Source

_LIST = pb.ListBackupsRequest(folder_id="f1")
_UNKNOWN = 10_000
_RETRY_S = 10
_CALLERS = 16


@pytest.fixture(name="source")
def _source() -> Iterator[Source]:
    with contextlib.closing(Source()) as source:
        yield source


async def _code(deployment: Deployment, token: str) -> StatusCode:
    async with deployment.channel(token) as channel:
        return await pb.BackupServiceStub(channel).List(_LIST, timeout=20).code()


@pytest.mark.guarantee(10, "bad tokens of every kind through Envoy; 10,000 a round of unknown keys with the issuer down")
async def test_bad_tokens_and_no_issuer(database_url: str, source: Source, *, long: bool, measure: Measure) -> None:
    """UNAUTHENTICATED all of them; good tokens pass all the time; the issuer is asked once in ten seconds by each replica, at most."""
    issuer = Issuer("k1", "k2")
    source.answer = (200, issuer.jwks("k1"))
    good = issuer.token("k1", exp=int(time.time()) + 3600)
    rounds = 10 if long else 1
    async with deployed(database_url, issuer=issuer, BACKUPS_JWKS=source.url, BACKUPS_JWKS_REFRESH="600") as deployment:
        assert await _code(deployment, good) is StatusCode.OK
        wrong = {what: await _code(deployment, bad.make(issuer)) for what, bad in BAD_TOKENS.items() if bad.make(issuer)}
        assert set(wrong.values()) == {StatusCode.UNAUTHENTICATED}, wrong
        asked, began = source.asked, time.monotonic()
        codes: Counter[tuple[bool, str]] = Counter()
        for number in range(rounds):
            source.answer = (500, b"") if number % 2 == 0 else None  # fails, or hangs
            codes += await _storm(deployment, issuer, good)
        async with asyncio.timeout(2 * _RETRY_S):
            while source.asked == asked:
                await asyncio.sleep(0.05)
        elapsed, fetches = time.monotonic() - began, source.asked - asked
    bound = len(deployment.replicas) * (int(elapsed / _RETRY_S) + 1)
    refused = codes[False, "UNAUTHENTICATED"]
    good_calls = codes[True, "OK"]
    measure(f"refused: {len(wrong)} kinds, {refused} calls with unknown keys; passed: {good_calls}; {fetches} fetches in {elapsed:.0f} s")
    assert set(codes) == {(True, "OK"), (False, "UNAUTHENTICATED")}
    assert refused == rounds * _UNKNOWN
    assert 1 <= fetches <= bound


async def _storm(deployment: Deployment, issuer: Issuer, good: str) -> Counter[tuple[bool, str]]:
    """How calls with unknown keys were answered, and those of good callers beside them."""
    codes: Counter[tuple[bool, str]] = Counter()
    left = iter(range(_UNKNOWN))
    ended = asyncio.Event()

    async def pass_by() -> None:
        async with deployment.channel(good) as channel:
            stub = pb.BackupServiceStub(channel)
            while not ended.is_set():
                codes[True, (await stub.List(_LIST, timeout=20).code()).name] += 1
                await asyncio.sleep(0.02)

    async def storm(token: str) -> None:
        async with deployment.channel(token) as channel:
            stub = pb.BackupServiceStub(channel)
            for _ in left:
                codes[False, (await stub.List(_LIST, timeout=20).code()).name] += 1

    passing = asyncio.ensure_future(pass_by())
    await asyncio.gather(*(storm(issuer.token("k2", named=f"unknown-{number}")) for number in range(_CALLERS)))
    ended.set()
    await passing
    return codes
