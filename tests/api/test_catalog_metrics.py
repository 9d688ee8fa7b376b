"""Metrics of the catalog."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.entry import Attempt, Entry, Listed, Unusable
from service.observability import logs
from service.postgres import remove_cluster
from service.postgres.imports.import_backups import Options, Target, load
from service.server import Server
from tests.support.catalog import Sql
from tests.support.eventually import eventually
from tests.support.metrics import Metrics, scrape, value_of
from tests.support.server import StartServer

_TIME = datetime(2026, 11, 20, 2, 41, 58, tzinfo=UTC)
_ON = {"metrics_listen": "127.0.0.1:0", "catalog_metrics": True, "catalog_metrics_refresh": "0.05"}
_COMPLETION = "backup_catalog_last_completion_timestamp_seconds"


async def _load(url: str, cluster: str, *days: int) -> None:
    entries = [
        Entry("", f"n{day}", f"{cluster}:{day}", _TIME + timedelta(days=day), _TIME + timedelta(days=day, hours=-2), 1000 + day, "base")
        for day in days
    ]
    await load(url, entries, Target("f1", cluster, "walg"), Options())


def _entry(day: int, size: int | None = None, **facts: Any) -> Entry:
    return Entry("", f"n{day}", f"c1:{day}", _TIME + timedelta(days=day), _TIME + timedelta(days=day, hours=-2), size, **facts)


async def _until(server: Server, condition: Callable[[Metrics], bool]) -> Metrics:
    return await eventually(lambda: scrape(server), condition, timeout_s=20, period_s=0.05)


def _clusters(scraped: Metrics, name: str = _COMPLETION) -> set[str]:
    return {dict(labels)["cluster_id"] for found, labels in scraped if found == name}


def _samples(scraped: Metrics, name: str) -> dict[tuple[str, str], float]:
    """Return the values of a metric by database and method. A metric without these labels has empty texts."""
    found = ((dict(labels), value) for (each, labels), value in scraped.items() if each == name)
    return {(labels.get("database", ""), labels.get("method", "")): value for labels, value in found}


_OF_TWO_BACKUPS = {
    "backup_catalog_restorable_backups": 2,
    "backup_catalog_broken_backups": 0,
    "backup_catalog_unknown_backups": 0,
    "backup_catalog_missing_backups": 0,
    "backup_catalog_backups": 2,
}


async def test_each_cluster_and_tool(start_server: StartServer, import_url: str, sql: Sql) -> None:
    """Metrics have the last backup's completion, size and duration, the number of backups and the last import of each cluster and tool."""
    await _load(import_url, "c1", 1, 2)
    await _load(import_url, "c2")
    async with start_server(**_ON) as server:
        scraped = await _until(server, lambda scraped: "c1" in _clusters(scraped))
        labels = {"folder_id": "f1", "cluster_id": "c1", "tool": "walg", "database": ""}
        imported_at = await sql.fetchval("SELECT imported_at FROM imports WHERE source_cluster_id = 'c1'")
        last = {
            _COMPLETION: (_TIME + timedelta(days=2)).timestamp(),
            "backup_catalog_last_duration_seconds": 7200,
            "backup_catalog_last_size_bytes": 1002,
        }
        assert {name: value_of(scraped, name, **labels, method="base") for name in last} == pytest.approx(last, abs=1e-5)
        values = _OF_TWO_BACKUPS | {"backup_catalog_last_import_timestamp_seconds": imported_at.timestamp()}
        assert {name: value_of(scraped, name, **labels) for name in values} == pytest.approx(values, abs=1e-5)
        assert _clusters(scraped) == {"c1"}  # c2 has no backup
        assert _clusters(scraped, "backup_catalog_backups") == {"c1", "c2"}
        assert value_of(scraped, "backup_catalog_restorable_backups", **labels | {"cluster_id": "c2"}) == 0
        assert _clusters(scraped, "backup_catalog_failed_attempts") == set()  # WAL-G records none
        assert value_of(scraped, "backup_catalog_left_out") == 0

        await _load(import_url, "c2", 1)
        await _until(server, lambda scraped: _clusters(scraped) == {"c1", "c2"})
        c1 = remove_cluster.Cluster("c1", None)
        await remove_cluster.remove_cluster(import_url, c1, expected=await remove_cluster.removal_preview(import_url, c1))
        await _until(server, lambda scraped: _clusters(scraped, "backup_catalog_backups") == {"c2"})


async def test_labels_of_database_and_method(start_server: StartServer, import_url: str) -> None:
    """Each database has the last base and, if it is newer, the last increment; an unknown size has no sample, and a size of 0 has one."""
    entries: list[Listed] = [
        _entry(1, 0, method="base", database="sales"),
        _entry(2, None, method="incremental", database="sales", needs=("n1",)),
        _entry(3, 500, method="base", database="demo"),
        _entry(4, 9, method="base", contents="metadata only", database="demo"),
        Attempt("a1", "demo", _TIME + timedelta(days=5), "failed"),
        Attempt("a2", "demo", _TIME + timedelta(days=6), "running"),
        Unusable("n7", "backup n7", "status", "'?' is unknown"),
        *(_entry(day, method="base", database="old") for day in range(-9, 0)),
    ]
    await load(import_url, entries, Target("f1", "c1", "gpbackup"), Options())
    days = {day: (_TIME + timedelta(days=day)).timestamp() for day in range(-9, 7)}
    async with start_server(**_ON) as server:
        scraped = await _until(server, lambda scraped: bool(_clusters(scraped)))
    bases = {("demo", "base"): days[3], ("old", "base"): days[-1]}
    assert _samples(scraped, _COMPLETION) == bases | {("sales", "base"): days[1], ("sales", "incremental"): days[2]}
    assert _samples(scraped, "backup_catalog_last_size_bytes") == {("sales", "base"): 0, ("demo", "base"): 500}
    assert set(_samples(scraped, "backup_catalog_last_duration_seconds").values()) == {7200}
    assert _samples(scraped, "backup_catalog_partial_backups") == {("demo", ""): 1, ("old", ""): 0, ("sales", ""): 0}
    assert _samples(scraped, "backup_catalog_last_partial_completion_timestamp_seconds") == {("demo", ""): days[4]}
    assert _samples(scraped, "backup_catalog_failed_attempts") == {("demo", ""): 1, ("old", ""): 0, ("sales", ""): 0}
    assert _samples(scraped, "backup_catalog_last_failed_attempt_timestamp_seconds") == {("demo", ""): days[5]}
    assert _samples(scraped, "backup_catalog_running_attempt_timestamp_seconds") == {("demo", ""): days[6]}
    assert _samples(scraped, "backup_catalog_unusable_entries") == {("", ""): 1}


async def test_off_by_default(start_server: StartServer, import_url: str) -> None:
    """Metrics of the catalog are off by default."""
    await _load(import_url, "c1", 1)
    async with start_server(metrics_listen="127.0.0.1:0") as server:
        scraped = await _until(server, lambda scraped: value_of(scraped, "backups_ready") == 1)
        assert not [name for name, _ in scraped if name.startswith("backup_catalog")]


@pytest.fixture(name="events")
def _events(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the logged events, in order."""
    events: list[dict[str, Any]] = []
    log = logs.event

    def event(name: str, /, *, level: str = "info", **facts: Any) -> None:
        events.append({"event": name, "level": level} | facts)
        log(name, level=level, **facts)

    monkeypatch.setattr(logs, "event", event)
    return events


async def test_limit(start_server: StartServer, import_url: str, events: list[dict[str, Any]]) -> None:
    """Above the limit, the databases with the oldest last backup are exposed, and a metric and one log line count the others."""
    for cluster, day in (("c1", 3), ("c2", 1), ("c3", 2)):
        await _load(import_url, cluster, day)
    async with start_server(**_ON, catalog_metrics_limit=2) as server:
        scraped = await _until(server, lambda scraped: value_of(scraped, "backup_catalog_left_out") == 1)
        first = value_of(scraped, "backup_catalog_refresh_timestamp_seconds")
        await _until(server, lambda scraped: value_of(scraped, "backup_catalog_refresh_timestamp_seconds") > first)
    assert _clusters(scraped) == {"c2", "c3"}
    assert [log for log in events if log["event"] == "catalog metrics left out clusters"] == [
        {"event": "catalog metrics left out clusters", "level": "warning", "limit": 2, "left_out": 1}
    ]


@pytest.mark.parametrize(
    ("break_sql", "fix_sql"),
    [
        ("ALTER TABLE imports RENAME TO hidden", "ALTER TABLE hidden RENAME TO imports"),
        ("REVOKE SELECT ON imports FROM backups_service", "GRANT SELECT ON imports TO backups_service"),
    ],
)
async def test_unreadable_catalog(
    start_server: StartServer, import_url: str, sql: Sql, events: list[dict[str, Any]], break_sql: str, fix_sql: str
) -> None:
    """While the catalog cannot be read, scrapes return the last values and their time, and the log has one line."""
    await _load(import_url, "c1", 1)
    async with start_server(**_ON) as server:
        await _until(server, lambda scraped: _clusters(scraped) == {"c1"})
        await sql.execute(break_sql)
        await eventually(lambda: [log for log in events if log["event"] == "catalog metrics not refreshed"], bool, timeout_s=20)
        stale = await scrape(server)
        assert _clusters(stale) == {"c1"}
        read_at = value_of(stale, "backup_catalog_refresh_timestamp_seconds")
        await sql.execute(fix_sql)
        await _until(server, lambda scraped: value_of(scraped, "backup_catalog_refresh_timestamp_seconds") > read_at)
    assert len([log for log in events if log["event"] == "catalog metrics not refreshed"]) == 1


async def test_without_database(start_server: StartServer) -> None:
    """A server whose database has never been available answers scrapes, without metrics of the catalog."""
    async with start_server(**_ON, database_url="postgresql://127.0.0.1:1/none") as server:
        scraped = await scrape(server)
    assert not [name for name, _ in scraped if name.startswith("backup_catalog")]
