"""File of `status --textfile`, for node_exporter's textfile collector."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.catalog_metrics import families
from service.cli.input_files import file_error
from service.postgres.freshness import Freshness, Stalest


class _Read(Collector):
    """Metrics of rows that were read."""

    def __init__(self, rows: Sequence[Freshness], read_at: datetime) -> None:
        self._rows, self._read_at = list(rows), read_at

    def collect(self) -> Iterator[Metric]:
        return families(Stalest(self._rows, left_out=0), self._read_at.timestamp())


def write_textfile(path: Path, rows: Sequence[Freshness], read_at: datetime) -> None:
    """Write the metrics that a server exports of its catalog. The file is replaced atomically, because it may be read at any time.

    Raises:
        CommandError: the file cannot be written.
    """
    registry = CollectorRegistry()
    registry.register(_Read(rows, read_at))
    try:
        write_to_textfile(str(path), registry)
    except (OSError, ValueError) as exc:
        raise file_error(f"--textfile {path}", exc) from None
