"""Read model of the backups and failed runs of each day, for a report."""

from datetime import date, timedelta
from typing import Literal, NamedTuple, TypeAlias

from service.postgres.database import Database

Kind: TypeAlias = Literal["base", "incremental", "failed", "partial", "unusable"]
"""Of a day's runs. Unusable: the backup is missing, or its chain is broken or unknown. A backup without a recorded method is a base."""

# A restorable backup is counted by its completion, and a run without one by its start. Days are those of UTC.
_DAYS = """
    WITH runs AS (
      SELECT (created_at AT TIME ZONE 'UTC')::date AS day, size, created_at - started_at AS duration,
        CASE WHEN chain <> 'complete' OR missing_since IS NOT NULL THEN 'unusable'
          WHEN contents <> 'everything' THEN 'partial'
          ELSE coalesce(method, 'base') END AS kind
      FROM backups
      WHERE source_cluster_id = $1 AND tool = $2 AND database = $3
        AND created_at >= $4::date::timestamp AT TIME ZONE 'UTC' AND created_at < ($5::date + 1)::timestamp AT TIME ZONE 'UTC'
      UNION ALL
      SELECT (started_at AT TIME ZONE 'UTC')::date, NULL, NULL, 'failed'
      FROM attempts
      WHERE source_cluster_id = $1 AND tool = $2 AND database = $3 AND state <> 'running'
        AND started_at >= $4::date::timestamp AT TIME ZONE 'UTC' AND started_at < ($5::date + 1)::timestamp AT TIME ZONE 'UTC')
    SELECT day, kind, max(size), max(duration) FROM runs GROUP BY day, kind ORDER BY day, kind"""


class Period(NamedTuple):
    """Days of UTC, both included."""

    first: date
    last: date

    @classmethod
    def until(cls, last: date, days: int) -> "Period":
        """Return the period of `days` days that ends with `last`."""
        return cls(last - timedelta(days=days - 1), last)

    @property
    def days(self) -> int:
        """Number of days."""
        return (self.last - self.first).days + 1


class Runs(NamedTuple):
    """The runs of one kind on a day."""

    day: date
    kind: Kind
    size: int | None
    """The largest size in bytes; None if no size is known."""
    duration: timedelta | None
    """The longest duration; None for failed runs."""


async def runs_by_day(database: Database, cluster_id: str, tool: str, of_database: str, period: Period) -> list[Runs]:
    """Return the runs of a cluster, by one tool, of one database; empty for backups of the whole cluster. They are ordered by day.

    Raises:
        CatalogUnavailable: see `Database.fetch`.
    """
    return [Runs(*row) for row in await database.fetch(_DAYS, cluster_id, tool, of_database, *period)]
