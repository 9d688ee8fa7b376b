"""Replication lag of the connected server."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from service.errors import ConnectFailed
from service.postgres.connect.hosts import Connect

if TYPE_CHECKING:
    from service.postgres.database import Database

# A standby has no lag if it has replayed everything that it received and its WAL receiver is running. PostgreSQL stops the receiver if
# nothing arrives for wal_receiver_timeout, a minute by default. Otherwise the lag is the age of the last replayed transaction, or of the
# standby's start if it has replayed none. Any role may use these functions and views.
_LAG = """
    SELECT CASE
        WHEN NOT pg_is_in_recovery() THEN interval '0'
        WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN interval '0'
        ELSE clock_timestamp() - coalesce(pg_last_xact_replay_timestamp(), pg_postmaster_start_time())
    END AS lag"""


async def replication_lag(database: "Database") -> timedelta:
    """Return the age of the data: zero on a primary, and on a standby that has replayed everything.

    Raises:
        CatalogUnavailable: see `Database.probe`.
    """
    [row] = await database.probe(_LAG)
    lag: timedelta = row["lag"]
    return lag


def connect_unless_lagging(connect: Connect, max_lag: timedelta) -> Connect:
    """Return a function that connects to the primary if the preferred standby lags more than `max_lag`.

    Without it, a standby that has lost its primary would be preferred for as long as it runs. If no primary can be reached, the function
    connects to the lagging standby, and the server reports that it is not ready.
    """

    async def connect_to_standby_or_primary(dsn: str | None = None, **options: Any) -> asyncpg.Connection:
        connection = await connect(**options)
        try:
            if await connection.fetchval(_LAG) <= max_lag:
                return connection
            primary = await connect(**options | {"target_session_attrs": SessionAttribute.primary})
        except ConnectFailed:
            return connection
        except BaseException:
            connection.terminate()
            raise
        connection.terminate()
        return primary

    return connect_to_standby_or_primary
