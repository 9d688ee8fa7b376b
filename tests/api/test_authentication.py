"""Authentication and authorization with tokens over a real socket and keys from a real file."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import grpc
import pytest
from grpc import StatusCode

from service import pb
from service.api.auth import authentication
from service.api.auth.authentication import JwtAuthenticator, TokenRules
from service.api.auth.signing_keys import SigningKeys
from service.errors import Rejection, Unauthenticated
from tests.support.catalog import AddBackups
from tests.support.eventually import eventually
from tests.support.failures import failure
from tests.support.metrics import scrape
from tests.support.server import StartGuarded, StartServer
from tests.support.tokens import AUDIENCE, BAD_TOKENS, ISSUER, Issuer, Source

_LIST = pb.ListBackupsRequest(folder_id="f1")


def _bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


async def test_a_good_token(guarded: StartGuarded, issuer: Issuer, jwks: Path, add_backups: AddBackups) -> None:
    """With a valid token, a client can list the folders that it names, and get their backups; `*` names all."""
    [backup] = await add_backups(1)
    [other] = await add_backups(1, folder_id="f2")
    async with guarded(jwks) as stub:
        # JSON can contain text that PostgreSQL cannot store. No folder has such an id.
        for token in (issuer.token("k1"), issuer.token("k1", folders=["f0", "f1"]), issuer.token("k1", folders=["f1", "a\0b", "\ud800"])):
            assert len((await stub.List(_LIST, metadata=_bearer(token))).backups) == 1
            assert (await stub.Get(pb.GetBackupRequest(backup_id=backup.id), metadata=_bearer(token))).id == backup.id
        for folders in ("*", ["*"], ["f1", "*"]):
            token = issuer.token("k1", folders=folders)
            assert (await stub.Get(pb.GetBackupRequest(backup_id=other.id), metadata=_bearer(token))).id == other.id


async def test_folders_that_a_token_does_not_name(guarded: StartGuarded, issuer: Issuer, jwks: Path, add_backups: AddBackups) -> None:
    """List of a forbidden folder is PERMISSION_DENIED even if the request is invalid; Get of its backup is NOT_FOUND."""
    [hidden] = await add_backups(1, id="hidden", folder_id="f2")
    metadata = [*_bearer(issuer.token("k1")), ("x-request-id", "r1")]
    async with guarded(jwks) as stub:
        for request in (
            pb.ListBackupsRequest(folder_id="f2"),
            pb.ListBackupsRequest(folder_id="f2", page_size=-1, page_token="x"),
            pb.ListBackupsRequest(folder_id="f" * 51),
        ):
            error = await failure(stub.List(request, metadata=metadata))
            assert (error.code, error.violations) == (StatusCode.PERMISSION_DENIED, [])
        error = await failure(stub.List(pb.ListBackupsRequest(page_size=-1), metadata=metadata))
        assert error.code is StatusCode.INVALID_ARGUMENT
        assert [field for field, _ in error.violations] == ["folder_id", "page_size"]

        forbidden = await failure(stub.Get(pb.GetBackupRequest(backup_id=hidden.id), metadata=metadata))
        absent = await failure(stub.Get(pb.GetBackupRequest(backup_id="absent"), metadata=metadata))
        assert forbidden.trailers["grpc-status-details-bin"].replace(b"hidden", b"absent") == absent.trailers["grpc-status-details-bin"]
        assert forbidden._replace(trailers={}, resource=None) == absent._replace(trailers={}, resource=None)

        token = issuer.token("k1", folders=None)
        assert (await failure(stub.List(_LIST, metadata=_bearer(token)))).code is StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("what", list(BAD_TOKENS))
async def test_bad_tokens(guarded: StartGuarded, issuer: Issuer, jwks: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad token is UNAUTHENTICATED with a fixed text and without details, and is not logged; valid tokens are not affected."""
    token = BAD_TOKENS[what].make(issuer)
    async with guarded(jwks) as stub:
        for call in (
            stub.List(pb.ListBackupsRequest(page_size=-1), metadata=_bearer(token)),
            stub.Get(pb.GetBackupRequest(), metadata=_bearer(token)),
        ):
            error = await failure(call)
            assert (error.code, error.message, error.violations) == (StatusCode.UNAUTHENTICATED, "A valid bearer token is required.", [])
        await stub.List(_LIST, metadata=_bearer(issuer.token("k1")))
    captured = capsys.readouterr()
    assert not token or token not in captured.out + captured.err
    assert "Traceback" not in captured.out + captured.err


@pytest.mark.parametrize("metadata", [[], [("authorization", "")], [("authorization", "Basic eA==")], [("authorization", "Bearer")]])
async def test_no_token(guarded: StartGuarded, jwks: Path, metadata: list[tuple[str, str]]) -> None:
    """A call without a token is UNAUTHENTICATED."""
    async with guarded(jwks) as stub:
        assert (await failure(stub.Get(pb.GetBackupRequest(backup_id="x"), metadata=metadata))).code is StatusCode.UNAUTHENTICATED


async def test_no_token_and_no_message(start_server: StartServer, jwks: Path) -> None:
    """The response to an unauthenticated client does not depend on its message."""
    settings = {"auth": "jwt", "jwks": str(jwks), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    async with start_server(**settings) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        call: Any = channel.unary_unary("/yandex.cloud.mdb.greenplum.v1.BackupService/Get")
        # Until the keys have been read, calls are UNAVAILABLE.
        error = await eventually(lambda: failure(call(b"\xff")), lambda error: error.code is not StatusCode.UNAVAILABLE)
        assert error.code is StatusCode.UNAUTHENTICATED


async def test_two_tokens(guarded: StartGuarded, issuer: Issuer, jwks: Path) -> None:
    """Two authorization headers are UNAUTHENTICATED, even if both are valid, because a proxy could choose either."""
    token = issuer.token("k1")
    async with guarded(jwks) as stub:
        for metadata in (_bearer(token) * 2, [("authorization", f"Bearer {token}, Bearer {token}")]):
            assert (await failure(stub.List(_LIST, metadata=metadata))).code is StatusCode.UNAUTHENTICATED


async def test_token_sizes(guarded: StartGuarded, issuer: Issuer, jwks: Path) -> None:
    """A token of 15 KiB is always accepted. One above the limit of all headers always fails, with the same status."""
    fits, too_long = (issuer.token("k1", folders=["f1", "f" * size]) for size in (11_000, 15_500))
    assert len(fits) > 15_000
    assert len(too_long) > 20 * 1024
    async with guarded(jwks) as stub:
        for _ in range(30):
            await stub.List(_LIST, metadata=_bearer(fits))
            assert await stub.List(_LIST, metadata=_bearer(too_long)).code() is StatusCode.RESOURCE_EXHAUSTED


async def test_cached_token_expires(guarded: StartGuarded, issuer: Issuer, jwks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cached token is rejected once it has expired."""
    token = issuer.token("k1")
    async with guarded(jwks) as stub:
        await stub.List(_LIST, metadata=_bearer(token))
        later = time.time() + 700
        monkeypatch.setattr("service.api.auth.authentication.time.time", lambda: later)
        monkeypatch.setattr("jwt.api_jwt.datetime", _Clock(later))
        assert (await failure(stub.List(_LIST, metadata=_bearer(token)))).code is StatusCode.UNAUTHENTICATED


class _Clock:
    """The clock that PyJWT reads."""

    def __init__(self, now: float) -> None:

        self._now = datetime.fromtimestamp(now, tz=UTC)

    def now(self, tz: Any = None) -> Any:
        return self._now


# Rejection reasons


async def test_rejected_tokens_are_logged_and_counted(
    start_server: StartServer, issuer: Issuer, jwks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rejected call is logged and counted with a fixed reason, which the client does not learn."""
    settings = {"auth": "jwt", "jwks": str(jwks), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "metrics_listen": "127.0.0.1:0"}
    async with start_server(**settings) as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        stub = pb.BackupServiceStub(channel)
        await eventually(lambda: stub.List(_LIST, metadata=_bearer(issuer.token("k1"))).code(), StatusCode.OK)
        capsys.readouterr()
        for what, bad in BAD_TOKENS.items():
            error = await failure(stub.List(_LIST, metadata=[*_bearer(bad.make(issuer)), ("x-request-id", what.replace(" ", "-"))]))
            assert (error.message, error.reason) == ("A valid bearer token is required.", "UNAUTHENTICATED")
        await failure(stub.List(_LIST))
        metrics = await scrape(server)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    rejections = [line["rejection"] for line in lines if line.get("code") == "UNAUTHENTICATED"]
    assert rejections == [*(bad.reason for bad in BAD_TOKENS.values()), "missing"]
    counts = {dict(labels)["reason"]: count for (name, labels), count in metrics.items() if name == "backups_rejected_credentials_total"}
    assert counts == {reason: rejections.count(reason) for reason in get_args(Rejection)}


async def test_folders_are_logged(guarded: StartGuarded, issuer: Issuer, jwks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder of an allowed or denied List call is logged, cut to 50 characters and quoted; without a valid token it is not."""
    long = "\n\u202e" + "f" * 100
    async with guarded(jwks) as stub:
        await stub.List(_LIST, metadata=_bearer(issuer.token("k1")))
        for folder in ("f2", long):
            await failure(stub.List(pb.ListBackupsRequest(folder_id=folder), metadata=_bearer(issuer.token("k1"))))
        await failure(stub.List(_LIST, metadata=_bearer("nonsense")))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["code"], line.get("folder")) for line in lines if line.get("method", "").endswith("/List")] == [
        ("OK", "f1"),
        ("PERMISSION_DENIED", "f2"),
        ("PERMISSION_DENIED", long[:50]),
        ("UNAUTHENTICATED", None),
    ]


async def test_long_subjects(guarded: StartGuarded, issuer: Issuer, jwks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At most 200 characters of a token's `sub` are logged."""
    async with guarded(jwks) as stub:
        await stub.List(_LIST, metadata=_bearer(issuer.token("k1", sub="s" * 5000)))
    assert f'"caller": "{"s" * 200}"' in capsys.readouterr().err


# Accepted tokens


@pytest.mark.parametrize("typ", [None, "JWT", "jwt", "at+jwt", "application/at+jwt"])
async def test_accepted_types(guarded: StartGuarded, issuer: Issuer, jwks: Path, typ: str | None) -> None:
    """`typ` may be missing, JWT or at+jwt (RFC 9068)."""
    async with guarded(jwks) as stub:
        await stub.List(_LIST, metadata=_bearer(issuer.token("k1", headers={"typ": typ})))


async def test_ignored_header_fields(guarded: StartGuarded, issuer: Issuer, jwks: Path, source: Source) -> None:
    """Keys in the header (`jwk`, `jku`, `x5u`) and other unknown fields are ignored, and no URL is requested."""
    own = json.loads(issuer.jwks("k2"))["keys"][0]
    headers = {"jwk": own, "jku": source.url, "x5u": source.url, "zip": "DEF", "x": [1, {}]}
    async with guarded(jwks) as stub:
        forged = issuer.token("k2", named="k1", headers={"jwk": own, "jku": source.url, "x5u": source.url})
        assert (await failure(stub.List(_LIST, metadata=_bearer(forged)))).code is StatusCode.UNAUTHENTICATED
        headers["jwk"] = {}
        await stub.List(_LIST, metadata=_bearer(issuer.token("k1", headers=headers)))
    assert source.requests == 0


async def test_tokens_without_key_id(guarded: StartGuarded, issuer: Issuer, jwks: Path) -> None:
    """A token without `kid` is accepted only if the JWKS has exactly one usable key."""
    token = issuer.token("k1", headers={"kid": None})
    async with guarded(jwks) as stub:
        assert (await failure(stub.List(_LIST, metadata=_bearer(token)))).code is StatusCode.UNAUTHENTICATED
    jwks.write_bytes(issuer.jwks("k1", elliptic=False))
    async with guarded(jwks) as stub:
        await stub.List(_LIST, metadata=_bearer(token))


@pytest.mark.parametrize(
    ("lifetime", "code"), [(3500, StatusCode.OK), (3700, StatusCode.UNAUTHENTICATED), (10**30, StatusCode.UNAUTHENTICATED)]
)
async def test_lifetime(guarded: StartGuarded, issuer: Issuer, jwks: Path, lifetime: int, code: StatusCode) -> None:
    """`exp` may be at most BACKUPS_JWT_MAX_LIFETIME in the future."""
    async with guarded(jwks, jwt_max_lifetime="3600") as stub:
        assert await stub.List(_LIST, metadata=_bearer(issuer.token("k1", exp=int(time.time()) + lifetime))).code() is code


# Caches


def _authenticator(issuer: Issuer) -> tuple[JwtAuthenticator, SigningKeys]:
    async def read() -> bytes:
        return issuer.jwks("k1")

    minute = timedelta(minutes=1)
    keys = SigningKeys(read, refresh=minute, max_age=minute, retry=minute)
    return JwtAuthenticator(keys, TokenRules(issuer=ISSUER, audience=AUDIENCE, max_lifetime=timedelta(days=1))), keys


async def test_cached_tokens_are_bounded(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cached tokens, verified or rejected, have a bounded size together, for any number of tokens that are sent."""
    monkeypatch.setattr("service.api.auth.authentication._VERIFIED_MAX", 20_000)
    monkeypatch.setattr("service.api.auth.authentication._REJECTED_MAX", 20_000)
    authenticator, keys = _authenticator(issuer)
    await keys.update()
    tokens = [issuer.token("k1", sub=f"caller {number}", folders=["f" * 3000]) for number in range(10)]
    for token in tokens * 3:
        assert authenticator.authenticate(_bearer(token)).may_read("f" * 3000)
        with pytest.raises(Unauthenticated):
            authenticator.authenticate(_bearer(token[:-3] + "AAA"))
    for cache in (authenticator._verified, authenticator._rejected):
        assert 0 < sum(map(len, cache._facts)) == cache.size <= 20_000


async def test_rejected_tokens_are_cached(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejected token is not verified again until the keys change."""
    authenticator, keys = _authenticator(issuer)
    await keys.update()
    token = issuer.token("k2", named="k1")
    checked = 0

    def check(*arguments: Any) -> None:
        nonlocal checked
        checked += 1
        check_signature(*arguments)

    check_signature = authentication._check_signature
    monkeypatch.setattr("service.api.auth.authentication._check_signature", check)
    for _ in range(3):
        with pytest.raises(Unauthenticated) as caught:
            authenticator.authenticate(_bearer(token))
        assert caught.value.reason == "signature"
    assert checked == 1
    keys.version += 1
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(_bearer(token))
    assert checked == 2


async def test_long_headers_are_not_parsed(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header segment over 1 KiB is rejected before anything is decoded."""
    authenticator, keys = _authenticator(issuer)
    await keys.update()
    monkeypatch.setattr("service.api.auth.authentication._decode", None)
    with pytest.raises(Unauthenticated) as caught:
        authenticator.authenticate(_bearer(issuer.token("k1", headers={"x": "x" * 1024})))
    assert caught.value.reason == "malformed"


async def test_claims_are_parsed_after_the_signature(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claims of a token with a wrong signature are not parsed."""
    authenticator, keys = _authenticator(issuer)
    await keys.update()
    monkeypatch.setattr("service.api.auth.authentication.jwt.decode", None)
    with pytest.raises(Unauthenticated) as caught:
        authenticator.authenticate(_bearer(issuer.token("k2", named="k1")))
    assert caught.value.reason == "signature"


async def test_fractional_times(issuer: Issuer) -> None:
    """Times of a token may have a fraction (RFC 7519, NumericDate)."""
    authenticator, keys = _authenticator(issuer)
    await keys.update()
    token = issuer.token("k1", exp=time.time() + 600.5, iat=time.time() - 0.5)
    assert authenticator.authenticate(_bearer(token)).subject == "client"


async def test_unexpected_error_of_a_verification(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unexpected error while a token is verified rejects the token, and is logged without its text."""
    authenticator, keys = _authenticator(issuer)
    await keys.update()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("hunter2")

    monkeypatch.setattr(authentication, "_check_signature", fail)
    with pytest.raises(Unauthenticated) as caught:
        authenticator.authenticate(_bearer(issuer.token("k1")))
    assert caught.value.reason == "unexpected"
    logged = capsys.readouterr().err
    assert "token verification failed unexpectedly" in logged
    assert "ZeroDivisionError" in logged
    assert "hunter2" not in logged
