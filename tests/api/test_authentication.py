"""Who may read what: tokens over a real socket, keys from a real file or a real HTTP server."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import pb
from service.api.authentication import TOKEN_MAX_LENGTH, JwtAuthenticator
from service.api.jwks import Keys, jwks_reader
from tests.support.answers import failure
from tests.support.catalog import AddBackups
from tests.support.server import StartServer
from tests.support.tokens import AUDIENCE, BAD_TOKENS, ISSUER, Issuer, Source

_LIST = pb.ListBackupsRequest(folder_id="f1")


@pytest.fixture(name="issuer", scope="module")
def _issuer() -> Issuer:
    return Issuer("k1", "k2")


@pytest.fixture(name="jwks")
def _jwks(issuer: Issuer, tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    file.write_bytes(issuer.jwks("k1"))
    return file


StartGuarded = Callable[..., contextlib.AbstractAsyncContextManager[pb.BackupServiceStub]]


@pytest.fixture(name="guarded")
def _guarded(start_server: StartServer) -> StartGuarded:
    """A server that wants tokens, once it has its keys."""

    @contextlib.asynccontextmanager
    async def start(jwks: Any, *, wait: bool = True, **settings: Any) -> AsyncIterator[pb.BackupServiceStub]:
        settings = {"auth": "jwt", "jwks": str(jwks), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE} | settings
        async with start_server(**settings) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
            if wait:
                async with asyncio.timeout(10):
                    async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):  # type: ignore[attr-defined]
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            break
            yield pb.BackupServiceStub(channel)

    return start


def _bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


async def test_a_good_token(guarded: StartGuarded, issuer: Issuer, jwks: Path, add_backups: AddBackups) -> None:
    """A good token lets its bearer list the folders that it names, and get their backups; `*` names all."""
    [backup] = await add_backups(1)
    [other] = await add_backups(1, folder_id="f2")
    async with guarded(jwks) as stub:
        # JSON can name what PostgreSQL cannot hold: such folders there are none of.
        for token in (issuer.token("k1"), issuer.token("k1", folders=["f0", "f1"]), issuer.token("k1", folders=["f1", "a\0b", "\ud800"])):
            assert len((await stub.List(_LIST, metadata=_bearer(token))).backups) == 1
            assert (await stub.Get(pb.GetBackupRequest(backup_id=backup.id), metadata=_bearer(token))).id == backup.id
        for folders in ("*", ["*"], ["f1", "*"]):
            token = issuer.token("k1", folders=folders)
            assert (await stub.Get(pb.GetBackupRequest(backup_id=other.id), metadata=_bearer(token))).id == other.id


async def test_what_a_bearer_may_not_read(guarded: StartGuarded, issuer: Issuer, jwks: Path, add_backups: AddBackups) -> None:
    """List of a forbidden folder is PERMISSION_DENIED whatever else is wrong; Get of its backup is what one that is not there gets."""
    [hidden] = await add_backups(1, id="hidden", folder_id="f2")
    metadata = [*_bearer(issuer.token("k1")), ("x-request-id", "r1")]
    async with guarded(jwks) as stub:
        for request in (
            pb.ListBackupsRequest(folder_id="f2"),
            pb.ListBackupsRequest(folder_id="f2", page_size=-1, page_token="x"),
            pb.ListBackupsRequest(folder_id="f" * 51),
        ):
            answer = await failure(stub.List(request, metadata=metadata))
            assert (answer.code, answer.violations) == (StatusCode.PERMISSION_DENIED, [])
        answer = await failure(stub.List(pb.ListBackupsRequest(page_size=-1), metadata=metadata))
        assert answer.code is StatusCode.INVALID_ARGUMENT
        assert [field for field, _ in answer.violations] == ["folder_id", "page_size"]

        forbidden = await failure(stub.Get(pb.GetBackupRequest(backup_id=hidden.id), metadata=metadata))
        absent = await failure(stub.Get(pb.GetBackupRequest(backup_id="absent"), metadata=metadata))
        assert forbidden.trailers["grpc-status-details-bin"].replace(b"hidden", b"absent") == absent.trailers["grpc-status-details-bin"]
        assert forbidden._replace(trailers={}, resource=None) == absent._replace(trailers={}, resource=None)

        token = issuer.token("k1", folders=None)
        assert (await failure(stub.List(_LIST, metadata=_bearer(token)))).code is StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("what", list(BAD_TOKENS))
async def test_bad_tokens(guarded: StartGuarded, issuer: Issuer, jwks: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """UNAUTHENTICATED with a fixed text, nothing else told, and the token in no log; a good token still passes."""
    token = BAD_TOKENS[what](issuer)
    async with guarded(jwks) as stub:
        for call in (
            stub.List(pb.ListBackupsRequest(page_size=-1), metadata=_bearer(token)),
            stub.Get(pb.GetBackupRequest(), metadata=_bearer(token)),
        ):
            answer = await failure(call)
            assert (answer.code, answer.message, answer.violations) == (StatusCode.UNAUTHENTICATED, "A valid bearer token is required.", [])
        await stub.List(_LIST, metadata=_bearer(issuer.token("k1")))
    captured = capsys.readouterr()
    assert not token or token not in captured.out + captured.err
    assert "Traceback" not in captured.out + captured.err


@pytest.mark.parametrize("metadata", [[], [("authorization", "")], [("authorization", "Basic eA==")], [("authorization", "Bearer")]])
async def test_no_token(guarded: StartGuarded, jwks: Path, metadata: list[tuple[str, str]]) -> None:
    """Without a token UNAUTHENTICATED, before the request's bytes are looked at: they may be no message at all."""
    async with guarded(jwks) as stub:
        assert (await failure(stub.Get(pb.GetBackupRequest(backup_id="x"), metadata=metadata))).code is StatusCode.UNAUTHENTICATED


async def test_no_token_and_no_message(start_server: StartServer, jwks: Path) -> None:
    """Bytes that are no message are not told so to a stranger."""
    settings = {"auth": "jwt", "jwks": str(jwks), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    async with start_server(**settings) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        call: Any = channel.unary_unary("/yandex.cloud.mdb.greenplum.v1.BackupService/Get")
        async with asyncio.timeout(10):
            while (answer := await failure(call(b"\xff"))).code is StatusCode.UNAVAILABLE:  # no keys yet
                await asyncio.sleep(0.02)
        assert answer.code is StatusCode.UNAUTHENTICATED


async def test_two_tokens(guarded: StartGuarded, issuer: Issuer, jwks: Path) -> None:
    """Two authorization headers are UNAUTHENTICATED, even if both are good: somebody else could choose."""
    token = issuer.token("k1")
    async with guarded(jwks) as stub:
        for metadata in (_bearer(token) * 2, [("authorization", f"Bearer {token}, Bearer {token}")]):
            assert (await failure(stub.List(_LIST, metadata=metadata))).code is StatusCode.UNAUTHENTICATED


async def test_token_sizes(guarded: StartGuarded, issuer: Issuer, jwks: Path) -> None:
    """A token up to the stated size passes every time, a longer one fails every time, with one status."""
    folders = ["f1", *(f"folder-{number:04}" for number in range(600))]
    fits = issuer.token("k1", folders=folders)
    assert 0.8 * TOKEN_MAX_LENGTH < len(fits) <= TOKEN_MAX_LENGTH
    too_long = issuer.token("k1", folders=[*folders, *(f"more-{number:04}" for number in range(200))])
    assert TOKEN_MAX_LENGTH < len(too_long) < 16_000
    async with guarded(jwks) as stub:
        for _ in range(30):
            await stub.List(_LIST, metadata=_bearer(fits))
            assert (await failure(stub.List(_LIST, metadata=_bearer(too_long)))).code is StatusCode.UNAUTHENTICATED


async def test_a_token_expires_while_it_is_remembered(
    guarded: StartGuarded, issuer: Issuer, jwks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that was verified is good until it expires, and not longer."""
    token = issuer.token("k1")
    async with guarded(jwks) as stub:
        await stub.List(_LIST, metadata=_bearer(token))
        later = time.time() + 700
        monkeypatch.setattr("service.api.authentication.time.time", lambda: later)
        monkeypatch.setattr("jwt.api_jwt.datetime", _Clock(later))
        assert (await failure(stub.List(_LIST, metadata=_bearer(token)))).code is StatusCode.UNAUTHENTICATED


class _Clock:
    """What PyJWT asks for the time."""

    def __init__(self, now: float) -> None:

        self._now = datetime.fromtimestamp(now, tz=UTC)

    def now(self, tz: Any = None) -> Any:
        return self._now


# Keys


@pytest.fixture(name="source")
def _source() -> Iterator[Source]:
    source = Source()
    yield source
    source.close()


async def _asked_more(source: Source, times: int = 2) -> None:
    before = source.asked
    async with asyncio.timeout(20):
        while source.asked < before + times:
            await asyncio.sleep(0.02)


async def test_the_last_good_keys_stay(guarded: StartGuarded, issuer: Issuer, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer that fails, talks nonsense, gives no keys, or hangs takes nothing away; a key that it drops stops working."""
    monkeypatch.setattr("service.composition._JWKS_RETRY", timedelta(seconds=0.05))
    source.answer = (200, issuer.jwks("k1", "k2"))
    async with guarded(source.url, jwks_refresh="0.1") as stub:
        first, second = issuer.token("k1"), issuer.token("k2")
        await stub.List(_LIST, metadata=_bearer(first))
        await stub.List(_LIST, metadata=_bearer(second))
        for answer in [(500, b""), (200, b"<html>"), (200, b'{"keys":[]}'), (200, b"[]"), (200, b"[" * 100_000), (200, b"x" * (1 << 21))]:
            source.answer = answer
            await _asked_more(source)
            await stub.List(_LIST, metadata=_bearer(first))
        source.answer = (200, issuer.jwks("k2"))
        await _asked_more(source)
        async with asyncio.timeout(10):
            while (await stub.List(_LIST, metadata=_bearer(first)).code()) is not StatusCode.UNAUTHENTICATED:
                await asyncio.sleep(0.02)
        await stub.List(_LIST, metadata=_bearer(second))
        source.answer = None
        await _asked_more(source, 1)
        await stub.List(_LIST, metadata=_bearer(second))


async def test_keys_grow_too_old(guarded: StartGuarded, issuer: Issuer, source: Source) -> None:
    """Where keys cannot be read again, they are used for the stated age; then calls are UNAVAILABLE, and so is the server."""
    source.answer = (200, issuer.jwks())
    async with guarded(source.url, jwks_refresh="600", jwks_max_age="1.5") as stub:
        await stub.List(_LIST, metadata=_bearer(issuer.token("k1")))
        async with asyncio.timeout(10):
            while (await stub.List(_LIST, metadata=_bearer(issuer.token("k1"))).code()) is StatusCode.OK:
                await asyncio.sleep(0.05)
        answer = await failure(stub.List(_LIST, metadata=_bearer(issuer.token("k1"))))
        assert (answer.code, answer.reason) == (StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE")


async def test_unknown_keys_are_no_storm(guarded: StartGuarded, issuer: Issuer, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand tokens of unknown keys cause at most one more look, and no call waits for it."""
    source.answer = (200, issuer.jwks("k1"))
    async with guarded(source.url, jwks_refresh="600") as stub:
        asked = source.asked
        for number in range(1000):
            call = stub.List(_LIST, metadata=_bearer(issuer.token("k2", named=f"unknown-{number}") if number < 20 else issuer.token("k2")))
            assert await call.code() is StatusCode.UNAUTHENTICATED
        assert source.asked <= asked + 1
        await stub.List(_LIST, metadata=_bearer(issuer.token("k1")))


async def test_a_new_key_is_looked_for(guarded: StartGuarded, issuer: Issuer, jwks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of a key that was added since makes the keys be read again soon, in the background."""
    monkeypatch.setattr("service.composition._JWKS_RETRY", timedelta(seconds=0.05))
    async with guarded(jwks, jwks_refresh="600") as stub:
        token = issuer.token("k2")
        assert await stub.List(_LIST, metadata=_bearer(token)).code() is StatusCode.UNAUTHENTICATED
        jwks.write_bytes(issuer.jwks("k1", "k2"))
        async with asyncio.timeout(10):
            while (await stub.List(_LIST, metadata=_bearer(token)).code()) is not StatusCode.OK:
                await asyncio.sleep(0.02)


async def test_no_keys_at_the_start(guarded: StartGuarded, issuer: Issuer, tmp_path: Path) -> None:
    """Without keys yet, the server starts, is not serving, and answers UNAVAILABLE."""
    async with guarded(tmp_path / "none.json", wait=False) as stub:
        answer = await failure(stub.List(_LIST, metadata=_bearer(issuer.token("k1"))))
        assert (answer.code, answer.reason) == (StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE")


async def test_keys_that_are_not_understood(guarded: StartGuarded, issuer: Issuer, jwks: Path) -> None:
    """A key that cannot be used, or is of a kind that nobody here knows, takes nothing from those beside it."""
    keys = json.loads(issuer.jwks("k1"))["keys"]
    without_modulus = {name: value for name, value in keys[0].items() if name != "n"} | {"kid": "broken"}
    jwks.write_text(json.dumps({"keys": [without_modulus, {"kty": "new"}, *keys, without_modulus | {"n": "!"}]}), encoding="utf-8")
    async with guarded(jwks) as stub:
        await stub.List(_LIST, metadata=_bearer(issuer.token("k1")))


async def test_an_issuer_without_end(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that does not end is given up, is not asked for a second time beside it, and once it has ended keys are read again."""
    monkeypatch.setattr("service.api.jwks._READ_TIMEOUT", 0.05)
    ended, asked = threading.Event(), 0

    def read() -> bytes:
        nonlocal asked
        asked += 1
        ended.wait(20)
        return issuer.jwks("k1")

    minute = timedelta(minutes=1)
    keys = Keys(read, family="RS", refresh=minute, max_age=minute, retry=minute)
    assert not await keys.update()
    assert not await keys.update()
    assert asked == 1
    ended.set()
    async with asyncio.timeout(10):
        while not await keys.update():
            await asyncio.sleep(0.01)
    assert keys.fresh


async def test_an_issuer_a_byte_at_a_time(issuer: Issuer, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes a byte at a time is given up, and does not stand in the way of the next one."""
    monkeypatch.setattr("service.api.jwks._READ_TIMEOUT", 0.3)
    source.answer, source.pause = (200, issuer.jwks("k1")), 0.05
    minute = timedelta(minutes=1)
    keys = Keys(jwks_reader(source.url), family="RS", refresh=minute, max_age=minute, retry=minute)
    assert not await keys.update()
    source.pause = 0
    async with asyncio.timeout(5):
        while not await keys.update():
            await asyncio.sleep(0.01)


def test_remembered_tokens_are_bounded(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of tokens is bounded by their size, however many are sent, and how often."""
    monkeypatch.setattr("service.api.authentication._REMEMBERED", 20_000)
    authenticator = JwtAuthenticator(_Held(issuer), family="RS", issuer=ISSUER, audience=AUDIENCE)  # type: ignore[arg-type]
    tokens = [issuer.token("k1", sub=f"caller {number}", folders=["f" * 3000]) for number in range(10)]
    for token in tokens * 3:
        assert authenticator.authenticate(_bearer(token)).may_read("f" * 3000)
    assert 0 < sum(map(len, authenticator._remembered)) == authenticator._size <= 20_000


class _Held:
    """A key that stays."""

    def __init__(self, issuer: Issuer) -> None:
        self._key = jwt.PyJWK(json.loads(issuer.jwks("k1"))["keys"][0], "RS256")

    def get(self, _: str) -> Any:
        return self._key

    def holds(self, _: Any) -> bool:
        return True
