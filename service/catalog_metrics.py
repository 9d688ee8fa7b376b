"""Metrics of the catalog: the last restorable backups, numbers of backups, attempts and the last import, by cluster, tool and database.

The catalog is read in the background. A scrape returns the values of the last read and its time. All replicas return the same values.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.observability import logs
from service.postgres.database import Database
from service.postgres.freshness import Freshness, Stalest, stalest

_TOOL = ("folder_id", "cluster_id", "tool")
_DATABASE = (*_TOOL, "database")
_METHOD = (*_DATABASE, "method")


class _Last(NamedTuple):
    """A last restorable backup."""

    method: str
    """base or incremental; empty if it is not recorded."""
    created_at: datetime
    duration: timedelta | None
    size: int | None


# None means no sample: an unknown size is not 0, and a cluster without a backup has no time of its last backup.
_LAST_METRICS: dict[str, tuple[str, Callable[[_Last], float | None]]] = {
    "backup_catalog_last_completion_timestamp_seconds": (
        "When the last restorable backup was completed, in seconds since 1970; no sample if there is none.",
        lambda last: last.created_at.timestamp(),
    ),
    "backup_catalog_last_duration_seconds": (
        "Duration of the last restorable backup, in seconds.",
        lambda last: None if last.duration is None else last.duration.total_seconds(),
    ),
    "backup_catalog_last_size_bytes": (
        "Size of the last restorable backup, in bytes; no sample if it is unknown.",
        lambda last: last.size,
    ),
}

_DATABASE_METRICS: dict[str, tuple[str, Callable[[Freshness], float | None]]] = {
    "backup_catalog_restorable_backups": ("Number of restorable backups after the last import.", lambda row: row.restorable),
    "backup_catalog_partial_backups": ("Number of backups that do not contain everything.", lambda row: row.partial),
    "backup_catalog_broken_backups": ("Number of backups with a broken chain.", lambda row: row.broken),
    "backup_catalog_unknown_backups": ("Number of backups with an unknown chain.", lambda row: row.unknown),
    "backup_catalog_missing_backups": ("Number of backups that the newest listing no longer contains.", lambda row: row.missing),
    "backup_catalog_backups": ("Number of backups in the catalog after the last import.", lambda row: row.backups),
    "backup_catalog_last_partial_completion_timestamp_seconds": (
        "When the last partial backup was completed, in seconds since 1970; no sample if there is none.",
        lambda row: _timestamp(row.last_partial_created_at),
    ),
    "backup_catalog_failed_attempts": (
        "Number of failed attempts since the last restorable backup; no sample if the tool records none.",
        lambda row: row.failed_attempts,
    ),
    "backup_catalog_last_failed_attempt_timestamp_seconds": (
        "When the newest of these failed attempts began, in seconds since 1970; no sample if there is none.",
        lambda row: _timestamp(row.last_failed_started_at),
    ),
    "backup_catalog_running_attempt_timestamp_seconds": (
        "When the attempt began that was running at the last import, in seconds since 1970; no sample if there is none.",
        lambda row: _timestamp(row.running_started_at),
    ),
    "backup_catalog_last_import_timestamp_seconds": (
        "When the last import began, in seconds since 1970, even if it changed nothing.",
        lambda row: row.imported_at.timestamp(),
    ),
}


def families(found: Stalest, read_at: float) -> Iterator[Metric]:
    """Return the metrics of rows that were read at a time, in seconds since 1970."""
    for name, (help_text, value_of_last) in _LAST_METRICS.items():
        samples = (((*_owner(row), last.method), value_of_last(last)) for row in found.kept for last in _last_backups(row))
        yield _family(name, help_text, _METHOD, samples)
    for name, (help_text, value_of) in _DATABASE_METRICS.items():
        yield _family(name, help_text, _DATABASE, ((_owner(row), value_of(row)) for row in found.kept))
    unusable = {_owner(row)[:-1]: row.unusable for row in found.kept}
    help_text = "Number of entries of the last listing with values that the catalog cannot hold."
    yield _family("backup_catalog_unusable_entries", help_text, _TOOL, unusable.items())
    left_out = "Clusters without metrics because of the limit, once for each tool and database: those with the newest last backups."
    yield GaugeMetricFamily("backup_catalog_left_out", left_out, value=found.left_out)
    yield GaugeMetricFamily(
        "backup_catalog_refresh_timestamp_seconds",
        "When these metrics were read from the catalog, in seconds since 1970.",
        value=read_at,
    )


def _family(name: str, help_text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float | None]]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family


def _owner(row: Freshness) -> tuple[str, ...]:
    return row.folder_id, row.source_cluster_id, row.tool, row.database or ""


def _last_backups(row: Freshness) -> Iterator[_Last]:
    """Yield the last restorable backup and, if that is an increment, also the last base: at most one of each method."""
    is_base = row.last_backup_id == row.last_base_id
    if row.last_created_at is not None:
        yield _Last("base" if is_base else row.last_method or "", row.last_created_at, row.last_duration, row.last_size)
    if row.last_base_created_at is not None and not is_base:
        yield _Last("base", row.last_base_created_at, row.last_base_duration, row.last_base_size)


def _timestamp(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


class CatalogMetrics(Collector):
    """Metrics of a limited number of clusters, counted once for each tool and database: those whose last backup is oldest."""

    def __init__(self, database: Database, *, limit: int) -> None:
        self._database = database
        self._limit = limit
        self._read: tuple[Stalest, float] | None = None  # replaced, never modified, because scrapes run in other threads
        self._limit_logged = False
        self._available = True

    async def refresh(self) -> None:
        """Read the catalog. If that fails, the metrics keep their values."""
        try:
            found = await stalest(self._database, limit=self._limit)
        except Exception as exc:  # unavailable, or the role lacks a privilege; logged once and retried after the period
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
