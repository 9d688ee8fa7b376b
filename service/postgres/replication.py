"""How far behind the primary the server is that is read from."""

from datetime import timedelta

from service.postgres.database import Database

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
        CatalogUnavailable: see `Database.fetch`.
    """
    [row] = await database.fetch(_LAG)
    lag: timedelta = row["lag"]
    return lag
