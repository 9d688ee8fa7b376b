"""Measurement of `import walg` with a listing of many entries on a single line."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import uvloop
from rich.progress import Progress

from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import migrate

_ROOT = Path(__file__).parents[1]
_DATABASE = "bench_import"
_FIRST = datetime(2000, 1, 1, tzinfo=UTC)


def measure_import(postgres: EmbeddedPostgres, folder: Path, *, entries: int, progress: Progress) -> dict[str, Any]:
    """Import a listing into an empty catalog, then import it again without changes; return time, CPU and memory of both."""
    uvloop.run(_new_database(postgres))
    url = postgres.url(_DATABASE)
    migrate(url)
    listing = folder / "listing.json"
    _write(listing, entries)
    measured: dict[str, Any] = {"entries": entries, "bytes": listing.stat().st_size}
    task = progress.add_task("Import", total=2)
    for name in ("first", "unchanged"):
        measured[name] = _import(listing, url)
        progress.advance(task)
    listing.unlink()
    return measured


async def _new_database(postgres: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(postgres.url("postgres"))
    await connection.execute(f"DROP DATABASE IF EXISTS {_DATABASE}")
    await connection.execute(f"CREATE DATABASE {_DATABASE}")
    await connection.close()


def _write(listing: Path, entries: int) -> None:
    """Write a listing with the keys of WAL-G for Greenplum, on one line."""
    with listing.open("w") as stream:
        stream.write("[")
        for number in range(entries):
            stream.write("," * (number > 0) + json.dumps(_entry(number)))
        stream.write("]")


def _entry(number: int) -> dict[str, object]:
    began = _FIRST + timedelta(seconds=47 * number)
    name = f"backup_{began:%Y%m%dT%H%M%SZ}"
    return {
        "Name": name,
        "restore_point": name,
        "start_time": f"{began:%Y-%m-%dT%H:%M:%S}.123456Z",
        "finish_time": f"{began + timedelta(minutes=17):%Y-%m-%dT%H:%M:%S}.654321Z",
        "date_fmt": "%Y-%m-%dT%H:%M:%SZ",
        "hostname": "coordinator",
        "gp_version": "6.25.3",
        "gp_flavor": "greenplum",
        "is_permanent": False,
        "uncompressed_size": 4 * 10**10 + number,
        "compressed_size": 10**10 + number,
        "data_catalog_size": 10**9,
        "user_data": None,
        "is_incremental": False,
        "segments_metadata": {},
    }


def _import(listing: Path, url: str) -> dict[str, float]:
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "import", "walg", listing, "--folder-id", "f", "--cluster-id", "c"],
        cwd=_ROOT,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "BACKUPS_DATABASE_URL": url},
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError("the import failed")
    return {"seconds": time.monotonic() - began, "cpu_s": used.ru_utime + used.ru_stime, "memory_max_mb": used.ru_maxrss / 1024}
