"""What Prometheus is told of the catalog: of each cluster and tool, the last completed backup and the last import.

Read in the background; a scrape shows what was read last, and when that was. Every replica tells the same.
"""

import time
from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.observability import logs
from service.postgres.database import Database
from service.postgres.last_imports import Imported, Oldest, oldest

_LABELS = ("folder_id", "cluster_id", "tool")

# No value, no sample: a cluster that never had a backup has no time of its last one.
_METRICS: dict[str, tuple[str, Callable[[Imported], float | None]]] = {
    "backup_catalog_last_completion_timestamp_seconds": (
        "When the last backup was completed.",
        lambda each: None if each.last_created_at is None else each.last_created_at.timestamp(),
    ),
    "backup_catalog_last_duration_seconds": (
        "How long the last backup took.",
        lambda each: None if each.last_duration is None else each.last_duration.total_seconds(),
    ),
    "backup_catalog_last_size_bytes": ("The size of the last backup; 0 where the tool records none.", lambda each: each.last_size),
    "backup_catalog_backups": ("How many backups the last import left in the catalog.", lambda each: each.backups),
    "backup_catalog_last_import_timestamp_seconds": (
        "When the last import began, also if it changed nothing.",
        lambda each: each.imported_at.timestamp(),
    ),
}


class CatalogMetrics(Collector):
    """At most so many clusters, each counted once a tool: those that have waited longest for a backup."""

    def __init__(self, database: Database, *, limit: int) -> None:
        self._database = database
        self._limit = limit
        self._read: tuple[Oldest, float] | None = None  # replaced, never changed: a scrape is in another thread
        self._complained = False
        self._available = True

    async def refresh(self) -> None:
        """Read the catalog. If that fails, the metrics keep their values."""
        try:
            found = await oldest(self._database, limit=self._limit)
        except Exception as exc:  # gone, or not for this role to read; said once, and tried again
            if self._available:
                logs.event("catalog metrics not refreshed", level="warning", error=logs.describe(exc))
            self._available = False
            return
        self._available = True
        self._read = found, time.time()
        if found.left_out and not self._complained:
            logs.event("catalog metrics left out clusters", level="warning", limit=self._limit, left_out=found.left_out)
        self._complained = bool(found.left_out)

    def collect(self) -> Iterator[Metric]:
        if self._read is None:
            return
        found, read_at = self._read
        for name, (help_text, value_of) in _METRICS.items():
            family = GaugeMetricFamily(name, help_text, labels=_LABELS)
            for each in found.kept:
                if (value := value_of(each)) is not None:
                    family.add_metric((each.folder_id, each.source_cluster_id, each.tool), value)
            yield family
        left_out = "Clusters, counted once a tool, beyond the limit: those whose last backup is newest."
        yield GaugeMetricFamily("backup_catalog_left_out", left_out, value=found.left_out)
        yield GaugeMetricFamily("backup_catalog_refresh_timestamp_seconds", "When these were read from the catalog.", value=read_at)

    def describe(self) -> list[Metric]:
        """None before the catalog was read."""
        return []
