"""Timeouts that sessions set themselves, so that those of the server, the database and the role have no effect."""

from datetime import timedelta
from typing import NamedTuple

import asyncpg

_MILLISECOND = timedelta(milliseconds=1)
_NONE = timedelta(0)
_FIRST_WITH_TRANSACTION_TIMEOUT = (17,)


class SessionTimeouts(NamedTuple):
    """Timeouts of one session; zero turns a timeout off."""

    statement: timedelta
    lock: timedelta = _NONE
    idle_in_transaction: timedelta = _NONE
    transaction: timedelta = _NONE

    @property
    def server_settings(self) -> dict[str, str]:
        """Parameters to connect with."""
        return {
            "statement_timeout": _milliseconds(self.statement),
            "lock_timeout": _milliseconds(self.lock),
            "idle_in_transaction_session_timeout": _milliseconds(self.idle_in_transaction),
        }

    async def set_transaction_timeout(self, connection: asyncpg.Connection) -> None:
        """Set `transaction_timeout`. Not a startup parameter, because servers before PostgreSQL 17 would reject the connection."""
        if connection.get_server_version() >= _FIRST_WITH_TRANSACTION_TIMEOUT:
            await connection.execute(f"SET transaction_timeout = {_milliseconds(self.transaction)}")


def _milliseconds(timeout: timedelta) -> str:
    return str(timeout // _MILLISECOND)
