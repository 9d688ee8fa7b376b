"""Secrets in the texts of exceptions, which must not reach a client or a log.

The interceptor wraps all code that a call runs and returns fixed texts (service/api/error_status.py).
Logs contain the types and code locations of errors that are not the project's own, never their texts (service/observability/logs.py).
The server under test is this release with injected `raise` statements.
"""

import asyncio
import contextlib
import json
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from service import pb
from tests.support.certificates import Authority, Files
from tests.support.deployment import ReplicaProcess, until_answered
from tests.support.eventually import eventually
from tests.support.guarantees import Measure
from tests.support.ports import free_ports
from tests.support.proxy import listening
from tests.support.releases import Change, altered
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

_SECRET = "hunter2"
_FAIL = '__import__("service.injected").injected.fail()'
_INJECTED = f'''
def fail():
    error = RuntimeError("password={_SECRET}")
    error.add_note("{_SECRET}")
    raise error from ValueError("{_SECRET}")


async def fail_alone():
    fail()


class Unserializable:
    def SerializeToString(self):
        fail()
'''

_BACKUP_SERVICE, _INTERCEPTOR = "service/api/backup_service.py", "service/api/interceptor.py"
_REQUEST_ID = "service/api/request_id.py"
_AUTHENTICATION, _JWKS = "service/api/auth/authentication.py", "service/api/auth/jwks.py"
_TLS, _HEALTH = "service/api/transport/certificate.py", "service/api/health.py"


def _before(file: str, line: str, condition: str, then: str = _FAIL) -> Change:
    indent = " " * (len(line) - len(line.lstrip()))
    return Change(file, line, f"{indent}if {condition}:\n{indent}    {then}\n{line}")


_GET_LINE = "        return encoded_backup(await self._catalog.get("
_FAULTS = {
    "handler": _before(_BACKUP_SERVICE, _GET_LINE, 'request.backup_id == "handler"'),
    "serializer": _before(
        _BACKUP_SERVICE,
        '        """Return one backup as an encoded `Backup`."""\n',
        'request.backup_id == "serializer"',
        'return __import__("service.injected").injected.Unserializable()',
    ),
    "deserializer": _before(_INTERCEPTOR, "            return deserialize(data)", 'b"deserializer" in data'),
    "request id": _before(_REQUEST_ID, "    for key in _KEYS:\n        value", 'given.get("x-request-id") == "request-id"'),
    "answer": _before(_INTERCEPTOR, "    status = status_of(error)", 'call.request_id == "answer"'),
    "interceptor": _before(_INTERCEPTOR, "            handler = await continuation(handler_call_details)", '"Reflection" in method'),
    "authentication": _before(_AUTHENTICATION, "        token = _bearer_token(metadata)", '("x-request-id", "authentication") in metadata'),
}
_BACKGROUND = {
    "task": _before(
        _BACKUP_SERVICE,
        '        """Return one page of a folder\'s backups, newest first, as an encoded `ListBackupsResponse`."""\n',
        'request.folder_id == "task"',
        '__import__("asyncio").ensure_future(__import__("service.injected").injected.fail_alone())',
    ),
    "TLS": _before(_TLS, "        versions = self._versions()\n        if", 'self._files.key.with_name("broken").exists()'),
    "JWKS": _before(_JWKS, "    for entry in _entries(data):", 'b"injected" in data'),
}


class Guarded(ReplicaProcess):
    """A replica with TLS and tokens."""

    def __init__(self, folder: Path, database_url: str, **settings: str) -> None:
        self.authority, self.issuer = Authority(), Issuer("main")
        self.certificate, self.jwks, self.log_file = Files(folder), folder / "jwks.json", folder / "log"
        self.certificate.write(self.authority.pair("first"))
        self.jwks.write_bytes(self.issuer.jwks())
        settings = {
            "BACKUPS_DATABASE_URL": database_url,
            "BACKUPS_TLS_CERT": str(self.certificate.cert),
            "BACKUPS_TLS_KEY": str(self.certificate.key),
            "BACKUPS_AUTH": "jwt",
            "BACKUPS_JWKS": str(self.jwks),
            "BACKUPS_JWKS_REFRESH": "0.1",
            "BACKUPS_JWT_ISSUER": ISSUER,
            "BACKUPS_JWT_AUDIENCE": AUDIENCE,
            "BACKUPS_REFLECTION": "true",
            "BACKUPS_DRAIN_DELAY": "0",
        } | settings
        super().__init__(free_ports(1)[0], settings, self.log_file)

    def channel(self) -> grpc.aio.Channel:
        token = grpc.access_token_call_credentials(self.issuer.token("main", folders="*"))
        credentials = grpc.composite_channel_credentials(grpc.ssl_channel_credentials(self.authority.cert), token)
        return grpc.aio.secure_channel(f"localhost:{self.port}", credentials, options=[("grpc.use_local_subchannel_pool", 1)])

    def logged(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    async def until_logged(self, text: str) -> None:
        await eventually(self.logged, lambda logged: text in logged, timeout_s=20)


@contextlib.asynccontextmanager
async def _started(replica: Guarded) -> AsyncIterator[grpc.aio.Channel]:
    async with replica.running():
        async with replica.channel() as channel:
            await until_answered(channel)
            yield channel
        assert await replica.stop(signal.SIGTERM) == 0


def _raised(replica: Guarded, file: str) -> bool:
    """Return True if the log has a traceback of an injected exception that passes through this file."""
    return any(f"{file}:" in line and "injected.py:" in line for line in replica.logged().splitlines())


async def _seen(call: Any) -> tuple[str, str]:
    """Return the code of the error that a call raises, and everything that its client can see of it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(10):
            await call
    error = caught.value
    visible = (error.details(), error.initial_metadata(), error.trailing_metadata(), error.debug_error_string())
    return error.code().name, repr(visible)


@pytest.mark.guarantee(9, "exceptions with a secret text, raised in handler, interceptor, deserializer, serializer, TLS and JWKS")
async def test_no_secret_on_the_wire_or_in_a_log(database_url: str, tmp_path: Path, *, measure: Measure) -> None:
    """Calls fail with INTERNAL and a fixed text; the log has types and locations of errors, not their texts; the server keeps serving."""
    release = altered(tmp_path / "release", *_FAULTS.values(), *_BACKGROUND.values())
    (release / "service" / "injected.py").write_text(_INJECTED, encoding="utf-8")
    replica = Guarded(tmp_path, database_url)
    replica.release = release
    async with _started(replica) as channel:
        seen = {fault: await _seen(_call(channel, fault)) for fault in _FAULTS}
        await pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="task"))
        await replica.until_logged('"unexpected error"')
        await _raise_in_background(replica, tmp_path / "broken")
        async with replica.channel() as another:
            await pb.BackupServiceStub(another).List(pb.ListBackupsRequest(folder_id="f1"), wait_for_ready=True, timeout=30)
    logged = replica.logged()
    codes = {fault: code for fault, (code, _) in seen.items()}
    measure(f"faults: {len(seen) + len(_BACKGROUND)}; answered {', '.join(sorted(set(codes.values())))}; secrets found: 0")
    assert codes == dict.fromkeys(_FAULTS, "INTERNAL")
    assert _SECRET not in str(seen)
    assert "RuntimeError" not in str(seen)
    assert _SECRET not in logged
    assert logged.count("builtins.RuntimeError") >= len(seen)
    assert [line for line in logged.splitlines() if not _is_json(line)] == []


async def _raise_in_background(replica: Guarded, broken: Path) -> None:
    """Raise exceptions while the certificate and the signing keys are read, until both are logged."""

    async def raised_by_handshake() -> bool:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(ssl.get_server_certificate, ("localhost", replica.port))
        return _raised(replica, "certificate.py")

    broken.touch()
    replica.jwks.write_bytes(b"injected")
    await eventually(raised_by_handshake, True, timeout_s=20)
    await replica.until_logged("signing keys cannot be read")
    broken.unlink()
    replica.jwks.write_bytes(replica.issuer.jwks())


def _call(channel: grpc.aio.Channel, fault: str) -> Any:
    if fault == "interceptor":
        call: Any = channel.unary_unary("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        return call(b"")
    metadata = [("x-request-id", fault.replace(" ", "-"))]
    return pb.BackupServiceStub(channel).Get(pb.GetBackupRequest(backup_id=fault), metadata=metadata)


def _is_json(line: str) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(json.loads(line), dict)
    return False


@pytest.mark.guarantee(9, "the same while a server starts")
async def test_no_secret_at_start(database_url: str, tmp_path: Path, *, measure: Measure) -> None:
    """A server that cannot start logs the type and location of the error, but not its text."""
    release = altered(tmp_path / "release", _before(_TLS, "        certificates = _parsed(chain)", "True"))
    (release / "service" / "injected.py").write_text(_INJECTED, encoding="utf-8")
    replica = Guarded(tmp_path, database_url)
    replica.release = release
    async with replica.running():
        assert await replica.wait() == 1
    logged = replica.logged()
    measure(f"lines logged: {len(logged.splitlines())}")
    assert "builtins.RuntimeError" in logged
    assert _SECRET not in logged
    assert [line for line in logged.splitlines() if not _is_json(line)] == []


_EMPTY_ANSWER = b"HTTP/1.1 200 OK\r\n\r\n"
_BAD_RESPONSES = [
    _EMPTY_ANSWER,
    b"",
    b"%s\r\n\r\n" % _SECRET.encode(),
    b"HTTP/1.1 200 OK\r\n\r\n{%s" % _SECRET.encode(),
    b"HTTP/1.1 302 x\r\nLocation: ftp://%s\r\n\r\n" % _SECRET.encode(),
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%s" % _SECRET.encode(),
]


@pytest.mark.guarantee(9, "the same for broken keys, certificates and JWKS, and an issuer that does not answer in HTTP")
async def test_no_secret_of_broken_files(database_url: str, tmp_path: Path, *, measure: Measure) -> None:
    """The log contains no part of a broken key or JWKS, an invalid response of the issuer, or the issuer's URL; reads of keys continue."""
    requests = 0
    good: bytes | None = None

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        writer.write(_BAD_RESPONSES[requests % len(_BAD_RESPONSES)] if good is None else _EMPTY_ANSWER + good)
        writer.close()

    async with listening(answer) as port:
        replica = Guarded(tmp_path, database_url, BACKUPS_JWKS=f"http://127.0.0.1:{port}/{_SECRET}")
        good = replica.issuer.jwks()
        async with _started(replica) as channel:
            good, before = None, requests
            replica.certificate.key.write_bytes(_SECRET.encode())
            with contextlib.suppress(OSError):
                await asyncio.to_thread(ssl.get_server_certificate, ("localhost", replica.port))
            await eventually(lambda: requests, lambda count: count >= before + 2 * len(_BAD_RESPONSES), timeout_s=30)
            await pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="f1"))
    measure(f"responses of the issuer: {requests}")
    logged = replica.logged()
    assert "certificate not reloaded" in logged
    assert "signing keys cannot be read" in logged
    assert _SECRET not in logged
    assert [line for line in logged.splitlines() if not _is_json(line)] == []
