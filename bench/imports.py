"""Measurement of `import walg` with a listing of many entries on a single line."""

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import migrate

_ROOT = Path(__file__).parents[1]
_DATABASE = "bench_import"
_FIRST = datetime(2000, 1, 1, tzinfo=UTC)
_SAMPLE: dict[str, object] = json.loads((_ROOT / "samples" / "walg-backup-list.json").read_bytes())[0]


def measure_import(postgres: EmbeddedPostgres, folder: Path, *, entries: int) -> dict[str, dict[str, float]]:
    """Import a listing into an empty catalog, then import it again without changes. Return seconds and memory of both."""
    asyncio.run(_new_database(postgres.url("postgres")))
    migrate(postgres.url(_DATABASE))
    listing = folder / "listing.json"
    with listing.open("w") as stream:
        stream.write("[")
        for number in range(entries):
            stream.write("," * (number > 0) + json.dumps(_entry(number)))
        stream.write("]")
    measured = {name: _import(listing, postgres.url(_DATABASE)) for name in ("first", "unchanged")}
    listing.unlink()
    return measured


async def _new_database(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(f"DROP DATABASE IF EXISTS {_DATABASE}")
    await connection.execute(f"CREATE DATABASE {_DATABASE}")
    await connection.close()


def _entry(number: int) -> dict[str, object]:
    """Return the sample's first entry with its own name and times."""
    began = _FIRST + timedelta(seconds=47 * number)
    finished = began + timedelta(minutes=17)
    times = {"start_time": f"{began:%Y-%m-%dT%H:%M:%S}.123456Z", "finish_time": f"{finished:%Y-%m-%dT%H:%M:%S}.654321Z"}
    return _SAMPLE | times | {"Name": f"backup_{began:%Y%m%dT%H%M%SZ}"}


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
        raise RuntimeError(f"the import exited with {process.returncode}")
    return {"seconds": round(time.monotonic() - began, 1), "memory_max_mb": round(used.ru_maxrss / 1024)}
