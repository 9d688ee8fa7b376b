"""Errors of PostgreSQL and asyncpg, and the cause that each one stands for.

The two tables map exception classes, and therefore SQLSTATEs, to texts for logs and commands. Clients of the API never receive them.
A text contains the message of the server only for errors whose messages name roles, databases, tables and columns, and no data.
"""

import socket
import ssl
from typing import NamedTuple

import asyncpg

from service.errors import CatalogUnavailable, ConnectFailed

_MESSAGE_MAX_LENGTH = 200

_LOST = "the connection to PostgreSQL was lost"
_MIGRATE = "run `backup-service migrate`"

# Of statements.
_STATEMENT_CAUSES: dict[type[BaseException], str] = {
    TimeoutError: "PostgreSQL did not answer in time",
    OSError: _LOST,
    asyncpg.InterfaceError: _LOST,  # lost between acquire and use; misuse of asyncpg, which any test would show, raises it too
    asyncpg.InternalClientError: _LOST,  # while the connection was set up
    asyncpg.PostgresConnectionError: _LOST,
    asyncpg.OperatorInterventionError: "an administrator ended the statement or the session",
    asyncpg.QueryCanceledError: "the statement was cancelled: it exceeded statement_timeout, or an administrator cancelled it",
    asyncpg.AdminShutdownError: "PostgreSQL is shutting down, or an administrator ended the session",
    asyncpg.CrashShutdownError: "PostgreSQL ended all sessions, because one of its processes crashed",
    asyncpg.CannotConnectNowError: "PostgreSQL is starting up, shutting down or recovering",
    asyncpg.IdleSessionTimeoutError: "PostgreSQL ended the session: it exceeded idle_session_timeout",
    asyncpg.IdleInTransactionSessionTimeoutError: "PostgreSQL ended the session: it exceeded idle_in_transaction_session_timeout",
    asyncpg.TransactionTimeoutError: "PostgreSQL ended the session: the transaction exceeded transaction_timeout",
    asyncpg.InsufficientResourcesError: "PostgreSQL has run out of memory, disk space or connections",
    asyncpg.DiskFullError: "the disk of PostgreSQL is full",
    asyncpg.TooManyConnectionsError: "PostgreSQL has no connection left",
    asyncpg.TransactionRollbackError: "the statement was cancelled: it conflicts with another transaction, or with recovery on a standby",
    asyncpg.LockNotAvailableError: "a lock was not granted within lock_timeout",
    asyncpg.ObjectNotInPrerequisiteStateError: "PostgreSQL is recovering, and accepts no statements yet",
    asyncpg.ReadOnlySQLTransactionError: "the server is a standby, or the role is read-only",
    asyncpg.InvalidAuthorizationSpecificationError: "PostgreSQL rejected the role: {detail}",
    asyncpg.InvalidCatalogNameError: "{detail}",
    asyncpg.UndefinedTableError: "the schema is not migrated ({detail}): " + _MIGRATE,
    asyncpg.UndefinedColumnError: "the schema does not match this release ({detail}): " + _MIGRATE,
    asyncpg.InsufficientPrivilegeError: "{detail}: `backup-service migrate` grants access to BACKUPS_SERVICE_ROLE and BACKUPS_IMPORT_ROLE",
}

# Of attempts to connect to a host.
_CONNECT_CAUSES: dict[type[BaseException], str] = {
    TimeoutError: "cannot connect to {host}: no response within {timeout_s:g} s",
    OSError: "cannot connect to {host}: {detail}",
    ConnectionRefusedError: "cannot connect to {host}: connection refused",
    ConnectionResetError: "cannot connect to {host}: connection reset",
    FileNotFoundError: "cannot connect to {host}: the socket does not exist",
    socket.gaierror: "cannot connect to {host}: the host name was not found",
    ssl.SSLError: "TLS with {host} failed: {detail}",
    ssl.SSLCertVerificationError: "TLS with {host}: the certificate is not trusted: {detail} (sslrootcert names the authority)",
    asyncpg.InterfaceError: "cannot connect to {host}: {detail}",
    asyncpg.InternalClientError: "cannot connect to {host}: the connection was lost",
    asyncpg.PostgresConnectionError: "cannot connect to {host}: the connection was lost",
    asyncpg.TargetServerAttributeNotMatched: "{host} does not match target_session_attrs={attributes}",
    asyncpg.InvalidPasswordError: '{host} rejected the password of role "{role}", or the role does not exist',
    asyncpg.InvalidAuthorizationSpecificationError: '{host} rejected role "{role}": {detail}',
    asyncpg.InvalidCatalogNameError: 'database "{database}" does not exist on {host}',
    asyncpg.InsufficientPrivilegeError: 'role "{role}" may not connect to database "{database}" on {host}: {detail}',
    asyncpg.TooManyConnectionsError: "{host} has no connection left: {detail}",
    asyncpg.CannotConnectNowError: "{host} is starting up, shutting down or recovering",
    asyncpg.PostgresError: "cannot connect to {host}: SQLSTATE {detail}",
}

# Messages of all other errors may contain values of rows.
_QUOTED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.TooManyConnectionsError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedTableError,
)

UNAVAILABLE = (
    ConnectFailed,
    OSError,  # also TimeoutError, which asyncpg's timeouts raise
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.InsufficientPrivilegeError,
)
"""Errors whose cause is outside of this code. All others are bugs, and pass through."""


class Attempt(NamedTuple):
    """Facts about an attempt to connect to one host, for its error message."""

    host: str
    role: str
    database: str
    attributes: str
    timeout_s: float
    uses_tls: bool


def unavailable(exc: BaseException) -> CatalogUnavailable:
    """Return the error to raise from one of `UNAVAILABLE`, with the cause as its message."""
    return CatalogUnavailable(cause(exc))


def cause(exc: BaseException) -> str:
    """Return the cause of an error of a statement, or of a connection that could not be opened."""
    if isinstance(exc, ConnectFailed):
        return str(exc)
    return _lookup(_STATEMENT_CAUSES, exc).format(detail=_detail(exc))


def connect_failed(exc: BaseException, attempt: Attempt) -> ConnectFailed:
    """Return the error to raise from one that occurred during an attempt to connect."""
    if attempt.uses_tls and type(exc) is ConnectionError:  # asyncpg's own, without a class for each reason
        return ConnectFailed(f"TLS with {attempt.host} failed: the server does not offer TLS, or ended the negotiation")
    return ConnectFailed(_lookup(_CONNECT_CAUSES, exc).format(**attempt._asdict(), detail=_detail(exc)))


def is_timeout(exc: BaseException) -> bool:
    """Return True if a statement or an attempt to connect timed out."""
    return isinstance(exc, TimeoutError) or (isinstance(exc, ConnectFailed) and isinstance(exc.__cause__, TimeoutError))


def _lookup(table: dict[type[BaseException], str], exc: BaseException) -> str:
    return next((table[kind] for kind in type(exc).__mro__ if kind in table), "PostgreSQL failed: {detail}")


def _detail(exc: BaseException) -> str:
    match exc:
        case ssl.SSLCertVerificationError():
            text = exc.verify_message
        case ssl.SSLError():
            text = exc.reason or str(exc)
        case asyncpg.PostgresError():
            text = exc.args[0] if isinstance(exc, _QUOTED) and exc.args else exc.sqlstate or type(exc).__name__
        case OSError():
            text = exc.strerror or str(exc)
        case asyncpg.InterfaceError():
            text = str(exc)
        case _:
            text = type(exc).__name__
    return "".join(character for character in text if character.isprintable())[:_MESSAGE_MAX_LENGTH]
