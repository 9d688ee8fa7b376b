"""A catalog of sample clusters for the report: its tests, and its screenshots in the documentation."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from service.entry import Attempt, Deleted, Entry, Listed
from service.postgres.imports.import_backups import Options, Target, load

_GIB = 1 << 30


class _Schedule(NamedTuple):
    """A run each night."""

    cluster: str
    hour: float
    base_size: int
    increment_size: int
    base_hours: float
    database: str = ""
    base_every: int = 7
    """Days."""


def _nights(days: int) -> Iterator[tuple[int, datetime]]:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for number in range(days):
        yield number, midnight - timedelta(days=days - number)


def _entries(schedule: _Schedule, days: int, rng: random.Random) -> Iterator[Entry]:
    parent: str | None = None
    for number, night in _nights(days):
        is_base = number % schedule.base_every == 0
        growth = (1 + number / days / 2) * rng.uniform(0.93, 1.07)
        size = round((schedule.base_size if is_base else schedule.increment_size) * growth)
        started_at = night + timedelta(hours=schedule.hour)
        duration = timedelta(hours=schedule.base_hours * growth * (1 if is_base else 0.2))
        name = f"{started_at:%Y%m%d%H%M%S}"
        needs = () if is_base or parent is None else (parent,)
        identifier = f"{schedule.cluster}:{schedule.database or 'b'}:{name}"
        yield Entry(
            *(f"entry {number}", name, identifier, started_at + duration, started_at, size, "base" if is_base else "incremental"),
            database=schedule.database,
            needs=needs,
        )
        parent = name


def _healthy(days: int, rng: random.Random) -> list[Listed]:
    schedule = _Schedule("dwh-production", 18.0, 800 * _GIB, 24 * _GIB, 2.3)
    return list(_entries(schedule, days, rng))


def _with_failures(days: int, rng: random.Random) -> list[Listed]:
    """Return backups of two databases. The runs of one of them have failed for some nights."""
    listing: list[Listed] = []
    for database, size in (("sales", 210), ("marketing", 40)):
        schedule = _Schedule("reporting", 17.0, size * _GIB, 0, 1.4, database, base_every=1)
        for number, entry in enumerate(_entries(schedule, days, rng)):
            failed = days - 4 < number if database == "sales" else number in (20, 21, 77)
            if failed:
                listing.append(Attempt(entry.name, database, entry.started_at, "failed"))
            elif database == "marketing" and number % 30 == 15:
                listing.append(entry._replace(contents="metadata only", size=_GIB // 50))
            else:
                listing.append(entry._replace(name=f"{entry.name}{database[0]}"))
    return listing


def _stopped(days: int, rng: random.Random) -> list[Listed]:
    """Return backups without the base of the last week, which was deleted, and without runs on a few nights."""
    schedule = _Schedule("staging", 19.0, 120 * _GIB, 9 * _GIB, 0.8)
    return [entry for number, entry in enumerate(_entries(schedule, days, rng)) if number not in (41, 42, 43, 97)]


async def load_sample(url: str, *, days: int = 180) -> None:
    """Import four clusters with backups of the last `days` days."""
    rng = random.Random(1)
    await load(url, _healthy(days, rng), Target("warehouse", "dwh-production", "walg"), Options())
    await load(url, _with_failures(days, rng), Target("warehouse", "reporting", "gpbackup"), Options())
    stopped = _stopped(days, rng)
    await load(url, stopped, Target("warehouse", "staging", "walg"), Options())
    bases = [entry for entry in stopped if isinstance(entry, Entry) and entry.method == "base"]
    await load(url, [entry for entry in stopped if entry is not bases[-1]], Target("warehouse", "staging", "walg"), Options())
    await load(url, [Deleted("20261101000000", "deleted")], Target("lab", "experiment", "gpbackup"), Options())
