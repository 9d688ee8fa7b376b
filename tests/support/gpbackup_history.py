"""Histories of gpbackup for tests, with the schema of the sample."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.support.repository import ROOT

SAMPLE = ROOT / "samples" / "gpbackup_history.db"

ROW: dict[str, Any] = {
    "timestamp": "20261104010002",
    "backup_dir": "/backups/gp",
    "backup_version": "1.30.5",
    "compressed": 1,
    "compression_type": "gzip",
    "database_name": "demo",
    "database_version": "6.27.1 build dev",
    "segment_count": 8,
    "data_only": 0,
    "date_deleted": "",
    "exclude_schema_filtered": 0,
    "exclude_table_filtered": 0,
    "include_schema_filtered": 0,
    "include_table_filtered": 0,
    "incremental": 0,
    "leaf_partition_data": 0,
    "metadata_only": 0,
    "plugin": "",
    "plugin_version": "",
    "single_data_file": 0,
    "end_time": "20261104034117",
    "without_globals": 0,
    "with_statistics": 0,
    "status": "Success",
}
"""A row as gpbackup writes it: with a value for every column."""


@contextlib.contextmanager
def open_history(path: Path) -> Iterator[sqlite3.Connection]:
    """Connect to a history without waiting for locks, and commit each statement."""
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        yield connection


def _schema() -> list[str]:
    with open_history(SAMPLE) as sample:
        return [sql for (sql,) in sample.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")]


def insert_row(connection: sqlite3.Connection, row: dict[str, Any]) -> None:
    """Insert a row that names its columns."""
    connection.execute(f"INSERT INTO backups ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values()))


def write_history(path: Path, *rows: dict[str, Any], plans: Iterable[tuple[str, str]] = ()) -> Path:
    """Write a history in gpbackup's own schema. `ROW` has the values of the columns that a row does not name."""
    with open_history(path) as connection:
        for statement in _schema():
            connection.execute(statement)
        for row in rows:
            insert_row(connection, ROW | row)
        connection.executemany("INSERT INTO restore_plans VALUES (?, ?)", list(plans))
    return path
