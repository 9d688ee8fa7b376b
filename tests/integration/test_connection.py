"""Connections: passwords that are not sent to unverified servers, password files, and ignored variables."""

import asyncio
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import asyncpg
import pytest
from asyncpg.connect_utils import SessionAttribute

from service.database_url import parse_database_url
from service.dev.embedded_postgres import EmbeddedPostgres
from service.errors import CatalogUnavailable, ConnectFailed
from service.postgres.connect.connection import connect as connect_to_host
from service.postgres.connect.hosts import Hosts
from service.postgres.connect.password_file import read_password
from service.postgres.database import Limits, open_database
from tests.support.commands import DATABASE_COMMANDS, RunCommand
from tests.support.huge_file import huge_file
from tests.support.proxy import listening, proxied

_SECRET = b"hunter2"
_LIMITS = Limits(pool_size=2, connect=timedelta(seconds=3), acquire=timedelta(seconds=5), statement=timedelta(seconds=10))


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4) + body


_CLEARTEXT = _message(b"R", (3).to_bytes(4))
_MD5 = _message(b"R", (5).to_bytes(4) + b"salt")
_NOTICE = _message(b"N", b"SNOTICE\0C00000\0Mhello\0\0")
_REFUSES_TLS = b"N"


class Impostor:
    """Server that rejects TLS, requests a password and records everything that it receives."""

    def __init__(self, *requests: bytes) -> None:
        self._requests = requests
        self.received = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(8)
        if first[4:] == (80877103).to_bytes(4):  # SSLRequest
            writer.write(_REFUSES_TLS)
            first = b""
        self.received += first
        data = await reader.read(1000)
        self.received += data
        if data:
            for request in self._requests:
                writer.write(request)
                await writer.drain()
                await asyncio.sleep(0)
            while data := await reader.read(1000):
                self.received += data
        writer.close()


async def _connected(url: str) -> asyncpg.Connection:
    connection: asyncpg.Connection = await Hosts(parse_database_url(url)).connect(timeout=5, server_settings={})
    return connection


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
@pytest.mark.parametrize("mode", ["", "?sslmode=require", "?sslmode=verify-full", "?sslmode=disable"])
@pytest.mark.parametrize(
    "requests",
    [[_CLEARTEXT], [_MD5], [_NOTICE + _CLEARTEXT], [_NOTICE, _MD5[:3], _MD5[3:]], [_CLEARTEXT[:8], _CLEARTEXT[8:] + _NOTICE]],
)
async def test_impostor_gets_no_password(host: str, mode: str, requests: list[bytes]) -> None:
    """A server without TLS gets the password neither in cleartext nor as an MD5 hash, however its request is split."""
    impostor = Impostor(*requests)
    async with listening(impostor.serve) as port:
        with pytest.raises(ConnectFailed, match="without TLS, so it was not sent|does not offer TLS"):
            await _connected(f"postgresql://u:{_SECRET.decode()}@{host}:{port}/d{mode}")
    assert _SECRET not in impostor.received
    assert b"md5" not in impostor.received
    tls = mode in ("?sslmode=require", "?sslmode=verify-full") or (host == "0.0.0.0" and not mode)  # it is not local
    assert (b"user\0" in impostor.received) is not tls


@pytest.mark.parametrize("arguments", DATABASE_COMMANDS)
async def test_commands_do_not_send_the_password(command: RunCommand, arguments: list[str]) -> None:
    """Every command that connects to PostgreSQL fails with the reason, without a traceback or the password."""
    impostor = Impostor(_CLEARTEXT)
    async with listening(impostor.serve) as port:
        done = await command(*arguments, stdin=b"[]", BACKUPS_DATABASE_URL=f"postgresql://u:{_SECRET.decode()}@127.0.0.1:{port}/d")
    assert _SECRET not in impostor.received
    assert done.status == 1
    assert f"127.0.0.1:{port} requests the password in cleartext without TLS, so it was not sent" in done.stderr
    assert done.stderr.count("\n") == 1
    assert _SECRET.decode() not in done.stderr


async def test_endless_message() -> None:
    """The connection is closed if the server announces a message that is too long for the time before authentication."""
    impostor = Impostor(b"N" + (2**31 - 1).to_bytes(4) + bytes(1000))
    async with listening(impostor.serve) as port:
        with pytest.raises(ConnectFailed, match="the connection was lost"):
            await _connected(f"postgresql://u@127.0.0.1:{port}/d")


@pytest.mark.parametrize("iterations", [b"1000001", b"2000000000", b"9" * 5000])
async def test_scram_iterations_are_limited(iterations: bytes) -> None:
    """A server without TLS cannot block the process with a huge number of iterations for the password."""
    request = _message(b"R", (10).to_bytes(4) + b"SCRAM-SHA-256\0\0")
    impostor = Impostor(request, _message(b"R", (11).to_bytes(4) + b"r=x,s=c2FsdA==,i=" + iterations))
    async with listening(impostor.serve) as port:
        with pytest.raises(ConnectFailed, match="requires more than 1000000 iterations of SCRAM without TLS"):
            await _connected(f"postgresql://u:{_SECRET.decode()}@127.0.0.1:{port}/d")


async def test_endless_parameters() -> None:
    """The connection is closed if the server reports more than fits into memory before the session starts."""
    accepted, parameters = _message(b"R", bytes(4)), [_message(b"S", b"p%d\0" % number + b"x" * 50_000 + b"\0") for number in range(30)]
    impostor = Impostor(accepted, *parameters)
    async with listening(impostor.serve) as port:
        with pytest.raises(ConnectFailed, match="the connection was lost"):
            await _connected(f"postgresql://u@127.0.0.1:{port}/d")


@pytest.mark.parametrize("name", ["PGPASSWORD", "PGUSER", "PGHOST", "PGPORT", "PGDATABASE", "PGSSLMODE", "PGSERVICE", "PGPASSFILE",
                                  "PGTARGETSESSIONATTRS", "PGSSLNEGOTIATION", "PGKRBSRVNAME", "PGGSSLIB", "PGSSLROOTCERT"])  # fmt: skip
async def test_variables_of_libpq_are_ignored(monkeypatch: pytest.MonkeyPatch, database_url: str, name: str) -> None:
    """A variable of libpq changes neither a connection nor its errors."""
    with monkeypatch.context() as changed:  # not when the fixtures connect
        changed.setenv(name, "hunter2")
        async with open_database(database_url, _LIMITS) as database:
            assert (await database.fetch("SELECT current_user"))[0][0] == "backups_service"


async def test_no_user_name(postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """If neither the URL nor the system has a user name, the error contains this cause."""
    monkeypatch.setattr("getpass.getuser", Mock(side_effect=KeyError("uid not found")))
    with pytest.raises(ConnectFailed, match="names no user, and this process has no user name"):
        await _connected(f"postgresql:///postgres?host={postgres.sockets}")


async def test_pgpassword_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The password of the environment is not used for any kind of authentication."""
    monkeypatch.setenv("PGPASSWORD", _SECRET.decode())
    url = parse_database_url("postgresql://u@127.0.0.1/d")
    seen: dict[str, Any] = {}

    async def connect(**arguments: Any) -> None:
        seen.update(arguments)
        raise OSError

    monkeypatch.setattr(asyncpg, "connect", connect)
    with pytest.raises(ConnectFailed):
        await connect_to_host(url, url.hosts[0], attributes=SessionAttribute.any, timeout=1, server_settings={})
    assert seen["password"] == ""


async def test_keepalives(postgres: EmbeddedPostgres, database_url: str) -> None:
    """TCP keepalives have the values of the URL, and are on by default."""
    async with proxied(postgres.sockets / ".s.PGSQL.5432") as proxy:
        url = database_url.partition("?")[0].replace("@/", f"@127.0.0.1:{proxy.port}/")
        connection: Any = await _connected(f"{url}?keepalives_idle=33&keepalives_interval=7&keepalives_count=4&tcp_user_timeout=9000")
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 33
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 9000
        await connection.close()
        off: Any = await _connected(f"{url}?keepalives=0")
        assert off._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        await off.close()


@pytest.mark.parametrize(
    ("line", "password"),
    [
        ("h:5432:d:u:secret", "secret"),
        ("*:*:*:*:secret", "secret"),
        (r"h:5432:d:u:se\:cr\\et", "se:cr\\et"),
        (r"h:5432:d:u:a\b", "ab"),
        ("h:5432:d:u:first:second", "first"),
        ("h:5432:d:u:secret\r\n", "secret"),
        ("h:5432:d:u:one\u2028two", "one\u2028two"),
        ("# h:5432:d:u:no\n\nother:*:*:*:no\nh:5433:*:*:no\nh:*:x:*:no\nh:*:*:x:no\nh:*:*:*:yes\nh:*:*:*:late", "yes"),
        (r"\*:*:*:*:secret", None),
        ("h:5432:d", None),
        ("", None),
        ("h:5432:d:u:пароль", "пароль"),
        ("h:5432:d:u: spaces ", " spaces "),
    ],
)
def test_password_files(tmp_path: Path, line: str, password: str | None) -> None:
    """The format is that of libpq, with its escapes, and the first matching line applies."""
    file = _password_file(tmp_path, line)
    [host] = parse_database_url("postgresql://h/d").hosts
    assert read_password(file, host, database="d", user="u") == password


def test_password_files_and_unix_sockets(tmp_path: Path) -> None:
    """The line for a Unix socket has its folder or localhost as the host."""
    [host] = parse_database_url("postgresql:///d?host=/tmp").hosts
    assert read_password(_password_file(tmp_path, "localhost:*:*:*:secret"), host, database="d", user="u") == "secret"
    assert read_password(_password_file(tmp_path, "/tmp:*:*:*:secret"), host, database="d", user="u") == "secret"


@pytest.mark.parametrize(("mode", "accepted"), [(0o400, True), (0o600, True), (0o640, True), (0o660, True), (0o644, False), (0o602, False)])
def test_modes_of_password_files(tmp_path: Path, mode: int, accepted: bool) -> None:
    """The group may have access, as with Kubernetes' fsGroup, and other users may not."""
    file = _password_file(tmp_path, "*:*:*:*:secret")
    file.chmod(mode)
    [host] = parse_database_url("postgresql://h/d").hosts
    if accepted:
        assert read_password(file, host, database="d", user="u") == "secret"
    else:
        with pytest.raises(ConnectFailed, match="is accessible to all users: chmod o= "):
            read_password(file, host, database="d", user="u")


def _password_file(folder: Path, text: str) -> Path:
    file = folder / "pgpass"
    file.write_text(text, encoding="utf-8", newline="")
    file.chmod(0o640)
    return file


async def test_password_files_of_any_kind(tmp_path: Path) -> None:
    """A directory, a named pipe without a writer, and a file of any size neither block nor crash the process."""
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir(mode=0o700)
    os.mkfifo(pipe, 0o600)
    with huge_file(tmp_path) as large:
        errors = {folder: "is not a regular file", pipe: "is not a regular file", large: "has more than 262144 bytes"}
        for file, error in errors.items():
            with pytest.raises(ConnectFailed, match=f"the password file {file} {error}"):
                await _connected(f"postgresql://u@127.0.0.1:1/d?passfile={file}")


async def test_unusable_password_files(tmp_path: Path) -> None:
    """The error names a password file that is missing, that cannot be read, or that has no line for the server."""
    with pytest.raises(ConnectFailed, match="the password file /proc/self/mem cannot be read: Input/output error"):  # for root too
        await _connected("postgresql://u@127.0.0.1:1/d?passfile=/proc/self/mem")
    with pytest.raises(ConnectFailed, match="/nowhere/pgpass cannot be read: No such file or directory"):
        await _connected("postgresql://u@127.0.0.1:1/d?passfile=/nowhere/pgpass")
    file = _password_file(tmp_path, "h:*:*:*:secret")
    with pytest.raises(ConnectFailed, match=f"{file} has no line for 127.0.0.1:1:d:u"):
        await _connected(f"postgresql://u@127.0.0.1:1/d?passfile={file}")
    async with open_database(f"postgresql://u@127.0.0.1:1/d?passfile={file}", _LIMITS) as database:
        with pytest.raises(CatalogUnavailable, match="has no line for"):
            await database.fetch("SELECT 1")
