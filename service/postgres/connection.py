"""One connection to one host: its password, TLS and socket options.

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
from service.postgres.password_file import read_password
from service.postgres.plaintext import PlaintextLoop
from service.postgres.tls import tls_context


class _Credentials(NamedTuple):
    user: str
    database: str
    password: str
    tls: ssl.SSLContext | None


async def connect(
    url: DatabaseUrl,
    host: Host,
    *,
    attributes: SessionAttribute,
    timeout: float,
    server_settings: dict[str, str],
    loop: asyncio.AbstractEventLoop | None = None,
    **options: Any,
) -> asyncpg.Connection:
    """Connect to one host of a URL.

    Args:
        timeout: seconds, unless the URL has a `connect_timeout`.
        options: further arguments of `asyncpg.connect`.

    Raises:
        ConnectFailed: TLS failed, the password must not be sent, or a file cannot be read.
    """
    seconds = url.connect_timeout_s or timeout
    async with asyncio.timeout(seconds):
        credentials = await asyncio.to_thread(_credentials, url, host)  # reads files
        plaintext = None if credentials.tls else PlaintextLoop(loop or asyncio.get_running_loop())
        arguments: Any = {
            "host": host.name,
            "port": host.port,
            "user": credentials.user,
            "password": credentials.password,
            "database": credentials.database,
            "ssl": credentials.tls or False,
            "direct_tls": bool(credentials.tls and url.tls.direct),
            "target_session_attrs": attributes,
            "timeout": seconds,
            "server_settings": {**server_settings, **url.server_settings},
            "krbsrvname": "postgres",
            "gsslib": "gssapi",
            "loop": plaintext or loop,
        }
        try:
            connection: asyncpg.Connection = await asyncpg.connect(**options, **arguments)
        except Exception as exc:
            raise _explained(exc, host, credentials, plaintext) from exc
    _set_keepalives(connection, host, url.keepalives)
    return connection


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
    """Return "" if there is none: with None, asyncpg would look for one itself."""
    if url.password is not None:
        return url.password
    if url.passfile is not None:
        password = read_password(Path(url.passfile), host, database=database, user=user)
        if password is None:
            raise ConnectFailed(f"the password file {url.passfile} has no line for {host.name}:{host.port}:{database}:{user}")
        return password
    default = Path("~/.pgpass").expanduser()
    return (default.is_file() and read_password(default, host, database=database, user=user)) or ""


def _explained(exc: Exception, host: Host, credentials: _Credentials, plaintext: PlaintextLoop | None) -> Exception:
    """Return the error to raise: the cause if it is one of TLS or of the password, else the error itself."""
    if plaintext and plaintext.refused:
        return ConnectFailed(
            f"{host} requests the password {plaintext.refused} without TLS, so it was not sent: "
            "use sslmode=verify-full, or a SCRAM password (password_encryption = scram-sha-256)"
        )
    if isinstance(exc, ssl.SSLCertVerificationError):
        return ConnectFailed(f"TLS with {host}: the certificate is not trusted: {exc.verify_message} (sslrootcert names the authority)")
    if isinstance(exc, ssl.SSLError):
        return ConnectFailed(f"TLS with {host} failed: {exc.reason or exc}")
    if credentials.tls and type(exc) is ConnectionError:  # asyncpg's own, without a class for each reason
        return ConnectFailed(f"TLS with {host} failed: the server does not offer TLS, or ended the negotiation")
    return exc


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
