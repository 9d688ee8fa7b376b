"""Metrics of the catalog: the last completed backup and the last import of each cluster and tool.

The catalog is read in the background. A scrape returns the values of the last read and its time. All replicas return the same values.
"""

import time
from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.observability import logs
from service.postgres.database import Database
from service.postgres.freshness import Freshness, Oldest, oldest

_LABELS = ("folder_id", "cluster_id", "tool", "database")

# None means no sample: a cluster without a backup has no time of its last backup.
_METRICS: dict[str, tuple[str, Callable[[Freshness], float | None]]] = {
    "backup_catalog_last_completion_timestamp_seconds": (
        "When the last restorable backup was completed, in seconds since 1970; no sample if there is none.",
        lambda each: None if each.last_created_at is None else each.last_created_at.timestamp(),
    ),
    "backup_catalog_last_duration_seconds": (
        "Duration of the last restorable backup, in seconds.",
        lambda each: None if each.last_duration is None else each.last_duration.total_seconds(),
    ),
    "backup_catalog_last_size_bytes": (
        "Size of the last restorable backup, in bytes; no sample if it is unknown.",
        lambda each: each.last_size,
    ),
    "backup_catalog_last_base_completion_timestamp_seconds": (
        "When the last restorable base was completed, in seconds since 1970; no sample if there is none.",
        lambda each: None if each.last_base_created_at is None else each.last_base_created_at.timestamp(),
    ),
    "backup_catalog_restorable_backups": ("Number of restorable backups after the last import.", lambda each: each.restorable),
    "backup_catalog_broken_backups": ("Number of backups with a broken chain.", lambda each: each.broken),
    "backup_catalog_unknown_backups": ("Number of backups with an unknown chain.", lambda each: each.unknown),
    "backup_catalog_missing_backups": ("Number of backups that the newest listing no longer has.", lambda each: each.missing),
    "backup_catalog_failed_attempts": (
        "Number of failed attempts since the last restorable backup; no sample if the tool records none.",
        lambda each: each.failed_attempts,
    ),
    "backup_catalog_backups": ("Number of backups in the catalog after the last import.", lambda each: each.backups),
    "backup_catalog_last_import_timestamp_seconds": (
        "When the last import began, in seconds since 1970, even if it changed nothing.",
        lambda each: each.imported_at.timestamp(),
    ),
}


def families(found: Oldest, read_at: float) -> Iterator[Metric]:
    """Return the metrics of rows that were read at a time, in seconds since 1970."""
    for name, (help_text, value_of) in _METRICS.items():
        family = GaugeMetricFamily(name, help_text, labels=_LABELS)
        for each in found.kept:
            if (value := value_of(each)) is not None:
                family.add_metric((each.folder_id, each.source_cluster_id, each.tool, each.database or ""), value)
        yield family
    left_out = "Clusters beyond the limit, counted once for each tool: those whose last backup is newest."
    yield GaugeMetricFamily("backup_catalog_left_out", left_out, value=found.left_out)
    yield GaugeMetricFamily(
        "backup_catalog_refresh_timestamp_seconds",
        "When these metrics were read from the catalog, in seconds since 1970.",
        value=read_at,
    )


class CatalogMetrics(Collector):
    """Metrics of a limited number of clusters, counted once for each tool: those whose last backup is oldest."""

    def __init__(self, database: Database, *, limit: int) -> None:
        self._database = database
        self._limit = limit
        self._read: tuple[Oldest, float] | None = None  # replaced, never modified, because scrapes run in other threads
        self._limit_logged = False
        self._available = True

    async def refresh(self) -> None:
        """Read the catalog. If that fails, the metrics keep their values."""
        try:
            found = await oldest(self._database, limit=self._limit)
        except Exception as exc:  # unavailable, or the role lacks a right; logged once and retried after the period
            if self._available:
                logs.event("catalog metrics not refreshed", level="warning", error=logs.describe(exc))
            self._available = False
            return
        self._available = True
        self._read = found, time.time()
        if found.left_out and not self._limit_logged:
            logs.event("catalog metrics left out clusters", level="warning", limit=self._limit, left_out=found.left_out)
        self._limit_logged = bool(found.left_out)

    def collect(self) -> Iterator[Metric]:
        if self._read is None:
            return
        yield from families(*self._read)

    def describe(self) -> list[Metric]:
        """Return nothing: the registry must not read the catalog when the collector is registered."""
        return []
