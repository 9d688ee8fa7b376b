"""How far behind the primary the server is that is read from."""

import contextlib
from datetime import timedelta
from typing import Any

from asyncpg.connect_utils import SessionAttribute

from service.postgres.database import UNAVAILABLE, Connect, Database

# What any role may ask. A standby that has replayed all that it received is up to date for as long as it still receives; PostgreSQL ends
# a receiver that has heard nothing for wal_receiver_timeout, a minute by default. Else it is as old as the last transaction it replayed,
# or, where it has replayed none yet, as its start.
_LAG = """
    SELECT CASE
        WHEN NOT pg_is_in_recovery() THEN interval '0'
        WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN interval '0'
        ELSE clock_timestamp() - coalesce(pg_last_xact_replay_timestamp(), pg_postmaster_start_time())
    END AS lag"""


async def replication_lag(database: Database) -> timedelta:
    """Nothing on a primary, and on a standby that has replayed everything.

    Raises:
        CatalogUnavailable: see `Database.look`.
    """
    [row] = await database.look(_LAG)
    lag: timedelta = row["lag"]
    return lag


def connect_to_fresh(connect: Connect, max_lag: timedelta) -> Connect:
    """Connects as it does, but to the primary in place of a standby that is further behind; where there is none, to the standby.

    A standby that has lost its primary would else be preferred for as long as it runs.
    """

    async def connect_to_fresh(*args: Any, **kwargs: Any) -> Any:
        connection = await connect(*args, **kwargs)
        try:
            if await connection.fetchval(_LAG) <= max_lag:
                return connection
            with contextlib.suppress(*UNAVAILABLE):  # what the standby reads may be old: the server says that it is not ready
                primary = await connect(*args, **kwargs | {"target_session_attrs": SessionAttribute.primary})
                connection.terminate()
                return primary
        except BaseException:
            connection.terminate()
            raise
        return connection

    return connect_to_fresh
