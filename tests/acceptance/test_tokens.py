"""Bad tokens, and an unavailable issuer.

Mitigations: `exp`, `iss` and `aud` are required, and the algorithm must match the key (service/api/auth/authentication.py).
Keys are read in the background, at least ten seconds apart regardless of the number of unknown key ids.
A failed read keeps the last keys (service/api/auth/signing_keys.py).
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
from tests.support.eventually import eventually
from tests.support.guarantees import Measure
from tests.support.tokens import BAD_TOKENS, Issuer, Source

_LIST = pb.ListBackupsRequest(folder_id="f1")
_RETRY_S = 10
_ROUND_S = 13  # longer than `_RETRY_S`, so that the issuer is read during a round; Envoy allows 1,000 calls a second from one address
_CALLERS = 16


@pytest.fixture(name="source")
def _source() -> Iterator[Source]:
    with contextlib.closing(Source()) as source:
        yield source


async def _code(deployment: Deployment, token: str) -> StatusCode:
    async with deployment.channel(token) as channel:
        return await pb.BackupServiceStub(channel).List(_LIST, timeout=20).code()


@pytest.mark.slow
@pytest.mark.guarantee(10, "every kind of bad token through Envoy; 10,000 calls a round with unknown keys while the issuer is down")
async def test_bad_tokens_without_issuer(database_url: str, source: Source, *, long: bool, measure: Measure) -> None:
    """Bad tokens are UNAUTHENTICATED, valid tokens are accepted all the time, and each replica reads keys at most every ten seconds."""
    issuer = Issuer("k1", "k2")
    source.response = (200, issuer.jwks("k1"))
    good = issuer.token("k1", exp=int(time.time()) + 3600)
    rounds, unknown = (10, 10_000) if long else (1, 1000)
    async with deployed(database_url, issuer=issuer, BACKUPS_JWKS=source.url, BACKUPS_JWKS_REFRESH="600") as deployment:
        assert await _code(deployment, good) is StatusCode.OK
        wrong = {kind: await _code(deployment, bad.make(issuer)) for kind, bad in BAD_TOKENS.items() if bad.make(issuer)}
        assert set(wrong.values()) == {StatusCode.UNAUTHENTICATED}, wrong
        before, began = source.requests, time.monotonic()
        codes: Counter[tuple[bool, str]] = Counter()
        for number in range(rounds):
            source.response = (500, b"") if number % 2 == 0 else None  # fails or hangs
            codes += await _storm(deployment, issuer, good, unknown)
        await eventually(lambda: source.requests, lambda requests: requests > before, timeout_s=2 * _RETRY_S)
        elapsed, fetches = time.monotonic() - began, source.requests - before
    bound = len(deployment.replicas) * (int(elapsed / _RETRY_S) + 1)
    rejected, accepted = codes[False, "UNAUTHENTICATED"], codes[True, "OK"]
    measure(f"rejected: {len(wrong)} kinds, {rejected} calls with unknown keys; accepted: {accepted}; {fetches} fetches in {elapsed:.0f} s")
    assert set(codes) == {(True, "OK"), (False, "UNAUTHENTICATED")}
    assert rejected == rounds * unknown
    assert 1 <= fetches <= bound


async def _storm(deployment: Deployment, issuer: Issuer, good: str, unknown: int) -> Counter[tuple[bool, str]]:
    """Make `unknown` calls with unknown keys within `_ROUND_S`, and calls with a valid token at the same time.

    Return the number of calls by validity of the token and status.
    """
    codes: Counter[tuple[bool, str]] = Counter()
    numbers = iter(range(unknown))
    period_s = _CALLERS * _ROUND_S / unknown
    done = asyncio.Event()

    async def call_with_valid_token() -> None:
        async with deployment.channel(good) as channel:
            stub = pb.BackupServiceStub(channel)
            while not done.is_set():
                codes[True, (await stub.List(_LIST, timeout=20).code()).name] += 1
                await asyncio.sleep(0.1)

    async def call_with_unknown_key(token: str) -> None:
        async with deployment.channel(token) as channel:
            stub = pb.BackupServiceStub(channel)
            for _ in numbers:
                code, _ = await asyncio.gather(stub.List(_LIST, timeout=20).code(), asyncio.sleep(period_s))
                codes[False, code.name] += 1

    valid = asyncio.ensure_future(call_with_valid_token())
    await asyncio.gather(*(call_with_unknown_key(issuer.token("k2", named=f"unknown-{number}")) for number in range(_CALLERS)))
    done.set()
    await valid
    return codes
