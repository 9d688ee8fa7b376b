"""Signing keys that change while the server runs."""

import asyncio
import itertools
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from grpc import StatusCode
from jwt.algorithms import RSAAlgorithm

from service import pb
from service.api.auth.signing_keys import SigningKeys
from service.periodic import PeriodicTask, running_periodically
from tests.support.eventually import eventually
from tests.support.failures import failure
from tests.support.server import StartGuarded
from tests.support.tokens import Issuer, Source

_LIST = pb.ListBackupsRequest(folder_id="f1")
_MINUTE = timedelta(minutes=1)


@pytest.fixture(name="short_retry")
def _short_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.composition._JWKS_RETRY", timedelta(seconds=0.05))


async def _code(stub: pb.BackupServiceStub, token: str) -> StatusCode:
    call: Any = stub.List(_LIST, metadata=[("authorization", f"Bearer {token}")])
    code: StatusCode = await call.code()
    return code


async def _more_requests(source: Source, times: int = 2) -> None:
    before = source.requests
    await eventually(lambda: source.requests, lambda requests: requests >= before + times, timeout_s=20)


@pytest.mark.usefixtures("short_retry")
async def test_keys_survive_failed_reads(guarded: StartGuarded, issuer: Issuer, source: Source) -> None:
    """Keys stay if the issuer fails, redirects, hangs, or returns a document that is not a JWKS."""
    source.response = (200, issuer.jwks("k1"))
    token = issuer.token("k1")
    async with guarded(source.url, jwks_refresh="0.1") as stub:
        for response in [(500, b""), (302, b""), (403, b""), (200, b"<html>"), (200, b"[]"), (200, b"{}"), (200, b"[" * 100_000),
                       (200, b"x" * (1 << 20))]:  # fmt: skip
            source.response = response
            await _more_requests(source)
            assert await _code(stub, token) is StatusCode.OK
        source.response = None
        await _more_requests(source, 1)
        assert await _code(stub, token) is StatusCode.OK


_WEAK_KEY = json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()))

_WITHDRAWALS = {
    "empty": (200, b'{"keys": []}'),
    "only a weak key": (200, json.dumps({"keys": [_WEAK_KEY | {"kid": "k1"}]}).encode()),
    "only malformed entries": (200, b'{"keys": [null, {}, {"kty": "RSA", "kid": "k1"}]}'),
    "404": (404, b""),
    "410": (410, b"gone"),
}


@pytest.mark.parametrize("document", list(_WITHDRAWALS))
async def test_withdrawal_of_the_only_key(guarded: StartGuarded, issuer: Issuer, source: Source, document: str) -> None:
    """When the last key is withdrawn, calls with any token are UNAVAILABLE within BACKUPS_JWKS_REFRESH, until there is a key again."""
    source.response = (200, issuer.jwks("k1", elliptic=False))
    token = issuer.token("k1")
    async with guarded(source.url, jwks_refresh="1") as stub:
        assert await _code(stub, token) is StatusCode.OK
        source.response = _WITHDRAWALS[document]
        await eventually(lambda: _code(stub, token), StatusCode.UNAVAILABLE, timeout_s=5)
        error = await failure(stub.List(_LIST, metadata=[("authorization", f"Bearer {token}")]))
        assert (error.code, error.reason) == (StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE")
        source.response = (200, issuer.jwks("k1"))
        await eventually(lambda: _code(stub, token), StatusCode.OK)


async def test_withdrawal_of_one_key(guarded: StartGuarded, issuer: Issuer, source: Source) -> None:
    """Tokens of a withdrawn key are rejected, even cached ones. The other key stays in use, despite a malformed entry."""
    source.response = (200, issuer.jwks("k1", "k2"))
    first, second = issuer.token("k1"), issuer.token("k2")
    async with guarded(source.url, jwks_refresh="1") as stub:
        assert await _code(stub, first) is StatusCode.OK
        document = json.loads(issuer.jwks("k2"))
        document["keys"].insert(0, {"kty": "RSA", "kid": "k1", "n": 1})
        source.response = (200, json.dumps(document).encode())
        await eventually(lambda: _code(stub, first), StatusCode.UNAUTHENTICATED, timeout_s=5)
        assert await _code(stub, second) is StatusCode.OK


async def test_withdrawal_takes_effect_within_the_refresh_period() -> None:
    """Reads begin less than a refresh period apart."""
    began: list[float] = []
    done = asyncio.Event()

    async def read() -> bytes:
        began.append(asyncio.get_running_loop().time())
        if len(began) == 4:
            done.set()
        return Issuer().jwks()

    refresh = timedelta(seconds=0.5)
    keys = SigningKeys(read, refresh=refresh, max_age=_MINUTE, retry=_MINUTE)
    async with running_periodically(PeriodicTask("refresh", keys.refresh, keys.retry)), asyncio.timeout(10):
        await done.wait()
    assert min(later - earlier for earlier, later in itertools.pairwise(began)) < refresh.total_seconds()


@pytest.mark.usefixtures("short_retry")
async def test_keys_that_are_too_old(guarded: StartGuarded, issuer: Issuer, source: Source) -> None:
    """Keys that cannot be read again are used until BACKUPS_JWKS_MAX_AGE. Then calls are UNAVAILABLE, even with cached tokens."""
    source.response = (200, issuer.jwks())
    token = issuer.token("k1")
    async with guarded(source.url, jwks_refresh="0.1", jwks_max_age="1") as stub:
        assert await _code(stub, token) is StatusCode.OK
        source.response = (500, b"")
        await eventually(lambda: _code(stub, token), StatusCode.UNAVAILABLE)
        error = await failure(stub.List(_LIST, metadata=[("authorization", f"Bearer {token}")]))
        assert (error.code, error.reason) == (StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE")
        source.response = (200, issuer.jwks())
        await eventually(lambda: _code(stub, token), StatusCode.OK)


@pytest.mark.usefixtures("short_retry")
async def test_missing_file(guarded: StartGuarded, issuer: Issuer, jwks: Path) -> None:
    """Keys stay if their file is removed; a file with an empty JWKS withdraws them."""
    token = issuer.token("k1")
    async with guarded(jwks, jwks_refresh="0.1") as stub:
        jwks.unlink()
        await asyncio.sleep(0.5)  # several reads fail within this time
        assert await _code(stub, token) is StatusCode.OK
        jwks.write_bytes(b'{"keys": []}')
        await eventually(lambda: _code(stub, token), StatusCode.UNAVAILABLE)


async def test_unknown_keys_do_not_flood_the_issuer(guarded: StartGuarded, issuer: Issuer, source: Source) -> None:
    """A thousand tokens with unknown keys cause at most one more read, and no call waits for it."""
    source.response = (200, issuer.jwks("k1"))
    async with guarded(source.url, jwks_refresh="600", jwks_max_age="3600") as stub:
        before = source.requests
        for number in range(1000):
            token = issuer.token("k2", named=f"unknown-{number}") if number < 20 else issuer.token("k2")
            assert await _code(stub, token) is StatusCode.UNAUTHENTICATED
        assert source.requests <= before + 1
        assert await _code(stub, issuer.token("k1")) is StatusCode.OK


@pytest.mark.usefixtures("short_retry")
async def test_new_key(guarded: StartGuarded, issuer: Issuer, jwks: Path) -> None:
    """A token with an unknown key makes the server read the keys soon; the same token is accepted once its key is published."""
    async with guarded(jwks, jwks_refresh="600") as stub:
        token = issuer.token("k2")
        for _ in range(3):
            assert await _code(stub, token) is StatusCode.UNAUTHENTICATED
            await asyncio.sleep(0.1)  # it is read again without the key
        jwks.write_bytes(issuer.jwks("k1", "k2"))
        await eventually(lambda: _code(stub, token), StatusCode.OK)


@pytest.mark.usefixtures("short_retry")
async def test_replaced_key(guarded: StartGuarded, issuer: Issuer, jwks: Path) -> None:
    """A token whose signature was wrong is accepted once the key of the same id is replaced by its key."""
    async with guarded(jwks, jwks_refresh="0.2") as stub:
        token = issuer.token("k2", named="k1")
        for _ in range(3):
            assert await _code(stub, token) is StatusCode.UNAUTHENTICATED
        jwks.write_bytes(issuer.jwks("k2").replace(b'"k2"', b'"k1"'))
        await eventually(lambda: _code(stub, token), StatusCode.OK)


async def test_no_keys_at_the_start(guarded: StartGuarded, issuer: Issuer, tmp_path: Path) -> None:
    """Without keys the server starts, is not ready, and returns UNAVAILABLE."""
    async with guarded(tmp_path / "none.json", wait=False) as stub:
        error = await failure(stub.List(_LIST, metadata=[("authorization", f"Bearer {issuer.token('k1')}")]))
        assert (error.code, error.reason) == (StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE")


async def test_ignored_entries_are_logged(guarded: StartGuarded, issuer: Issuer, jwks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ignored entries are logged once for each kind, without a part of them, and not again while they stay the same."""
    document = json.loads(issuer.jwks("k1"))
    private = json.loads(RSAAlgorithm.to_jwk(issuer.keys["k2"])) | {"kid": "exposed"}
    document["keys"] += [private, _WEAK_KEY, _WEAK_KEY | {"kid": "w"}, {"kty": "oct", "k": "c2VjcmV0"}, "hunter2"]
    jwks.write_text(json.dumps(document), encoding="utf-8")
    async with guarded(jwks, jwks_refresh="0.1") as stub:
        await asyncio.sleep(0.5)  # several reads
        assert await _code(stub, issuer.token("k1")) is StatusCode.OK
        assert await _code(stub, issuer.token("k2", named="exposed")) is StatusCode.UNAUTHENTICATED
    logged = capsys.readouterr().err
    lines = [json.loads(line) for line in logged.splitlines()]
    assert [(line["level"], line["reason"], line["count"]) for line in lines if line["event"] == "signing keys ignored"] == [
        ("warning", "malformed", 1),
        ("error", "private", 1),
        ("warning", "size", 2),
        ("warning", "symmetric", 1),
    ]
    for secret in (private["d"], private["n"], _WEAK_KEY["n"], "c2VjcmV0", "hunter2"):
        assert secret not in logged


async def test_reads_continue_after_any_error(issuer: Issuer) -> None:
    """An error of any type does not change the keys, and the next read follows."""
    outcomes: list[bytes | Exception] = [issuer.jwks("k1"), OSError(), ValueError(), RuntimeError(), TimeoutError(), issuer.jwks("k2")]

    async def read() -> bytes:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    keys = SigningKeys(read, refresh=_MINUTE, max_age=_MINUTE, retry=timedelta(0))
    assert await keys.update()
    first = keys.get("k1")
    for _ in range(4):
        assert not await keys.update()
        assert keys.holds(first)
    assert await keys.update()
    assert not keys.holds(first)
    assert keys.get("k2")
