"""Connection to one host: its password, TLS and socket options.

Every argument that asyncpg would otherwise take from the environment (PGPASSWORD, PGSSLMODE, ...) is passed explicitly.
"""

import asyncio
import getpass
import socket
import ssl
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from service.database_url import DatabaseUrl, Host, Keepalives
from service.errors import ConnectFailed
from service.postgres.connect.password_file import read_password
from service.postgres.connect.plaintext import PlaintextLoop
from service.postgres.connect.tls import tls_context
from service.postgres.errors import UNAVAILABLE, Attempt, connect_failed


class _Credentials(NamedTuple):
    user: str
    database: str
    password: str
    tls: ssl.SSLContext | None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"user": self.user, "database": self.database, "password": self.password, "ssl": self.tls or False}


async def connect(
    url: DatabaseUrl,
    host: Host,
    *,
    attributes: SessionAttribute,
    timeout: float,
    server_settings: dict[str, str],
    **options: Any,
) -> asyncpg.Connection:
    """Connect to one host of a URL within `timeout` seconds, unless the URL has a `connect_timeout`; `options` are those of asyncpg.

    Raises:
        ConnectFailed: the host cannot be used; the message is the cause, and `__cause__` the error of asyncpg.
    """
    seconds = url.connect_timeout_s or timeout
    plaintext = None if host.uses_tls else PlaintextLoop(options.get("loop") or asyncio.get_running_loop())
    options |= {"target_session_attrs": attributes, "server_settings": {**server_settings, **url.server_settings}}
    options |= {"direct_tls": host.uses_tls and url.tls.direct} | ({"loop": plaintext} if plaintext else {})
    try:
        async with asyncio.timeout(seconds):
            credentials = await asyncio.to_thread(_credentials, url, host)  # reads files
            connection = await _connect(host, credentials, timeout=seconds, **options)
    except UNAVAILABLE as exc:
        if isinstance(exc, ConnectFailed):
            raise
        if plaintext and plaintext.rejection:
            raise ConnectFailed(f"{host} {plaintext.rejection}") from exc
        raise connect_failed(exc, _attempt(url, host, attributes, seconds)) from exc
    _set_keepalives(connection, host, url.keepalives)
    return connection


async def _connect(host: Host, credentials: _Credentials, **options: Any) -> asyncpg.Connection:
    unused: Any = {"krbsrvname": "postgres", "gsslib": "gssapi"}  # without values, asyncpg would read the environment
    connection: asyncpg.Connection = await asyncpg.connect(host=host.name, port=host.port, **credentials.arguments, **unused, **options)
    return connection


def _attempt(url: DatabaseUrl, host: Host, attributes: SessionAttribute, timeout_s: float) -> Attempt:
    role = url.user or _system_user()
    return Attempt(
        host=str(host),
        role=role,
        database=url.database or role,
        attributes=attributes.value,
        timeout_s=timeout_s,
        uses_tls=host.uses_tls,
    )


def _credentials(url: DatabaseUrl, host: Host) -> _Credentials:
    user = url.user or _system_user()
    database = url.database or user
    return _Credentials(user, database, _password(url, host, user=user, database=database), tls_context(url.tls, host))


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as exc:
        raise ConnectFailed("the URL of PostgreSQL names no user, and this process has no user name") from exc


def _password(url: DatabaseUrl, host: Host, *, user: str, database: str) -> str:
    """Return the password, or "" if there is none: with None, asyncpg would search for one."""
    if url.password is not None:
        return url.password
    if url.passfile is not None:
        password = read_password(Path(url.passfile), host, database=database, user=user)
        if password is None:
            raise ConnectFailed(f"the password file {url.passfile} has no line for {host.name}:{host.port}:{database}:{user}")
        return password
    default = Path("~/.pgpass").expanduser()
    return (default.is_file() and read_password(default, host, database=database, user=user)) or ""


def _set_keepalives(connection: asyncpg.Connection, host: Host, keepalives: Keepalives) -> None:
    if host.is_socket or not keepalives.enabled:
        return
    transport: Any = connection._transport  # type: ignore[attr-defined]  # noqa: SLF001  # asyncpg has no public way to the socket
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", keepalives.idle_s),
        ("TCP_KEEPINTVL", keepalives.interval_s),
        ("TCP_KEEPCNT", keepalives.probes),
        ("TCP_USER_TIMEOUT", keepalives.user_timeout_ms),
    ):
        if value is not None and hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
