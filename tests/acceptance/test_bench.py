"""The benchmark: a short run, and how its load generator counts answers."""

import json
import sys
from pathlib import Path

import pytest

from bench.load import Workload, run_workload
from service import pb
from service.server import Server
from tests.support import processes
from tests.support.catalog import AddBackups
from tests.support.commands import environment
from tests.support.repository import ROOT

_CASES = {f"{call}, {over}" for call in ("Get", "List 100", "List 1000") for over in ("1 connection", "8 connections")}


@pytest.mark.timeout(180)  # about fifteen seconds on an idle machine, because it starts a dozen processes
async def test_a_short_run(tmp_path: Path) -> None:
    """`python -m bench` fills a catalog, measures the service and two peers, and writes its tables and JSON."""
    done = await processes.run(
        *(
            sys.executable,
            "-m",
            "bench",
            "--backups",
            "300",
            "--peers",
            "asyncpg,no-interceptor",
            "--rounds",
            "1",
            "--seconds",
            "0.1",
            "--imports",
            "50",
        ),
        *("--data", tmp_path / "data", "--output", tmp_path / "results"),
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr.decode()
    results = json.loads((tmp_path / "results" / "calls.json").read_text())
    assert results["calls"].keys() == _CASES
    for systems in results["calls"].values():
        assert systems.keys() == {"service", "asyncpg", "no interceptor"}
        for [measure] in systems.values():
            assert all(measure[field] > 0 for field in ("calls_s", "p50_ms", "p99_ms", "server_us", "postgres_us", "bytes_a_call"))
    assert results["depth"].keys() == {"page 1", "page 3"}
    assert results["concurrent_pages"]["failed"] == 0
    assert 0 < results["concurrent_pages"]["blocked_p99_ms"] <= results["concurrent_pages"]["blocked_max_ms"]
    assert results["import"]["unchanged"]["seconds"] > 0
    assert (tmp_path / "results" / "calls.md").read_text() in done.stdout.decode()
    logged = [json.loads(line) for line in (tmp_path / "data" / "service.log").read_text().splitlines()]
    assert sum(line["event"] == "call" for line in logged) > len(_CASES)


async def test_errors_are_not_counted_as_calls(server: Server, stub: pb.BackupServiceStub, add_backups: AddBackups) -> None:
    """The load generator counts only answers with a message as calls."""
    [backup] = await add_backups()
    path = f"/{pb.BACKUP_SERVICE}/Get"

    def workload(*ids: str) -> Workload:
        return Workload(str(server.address), path, [pb.GetBackupRequest(backup_id=id_).SerializeToString().hex() for id_ in ids], 2, 2, 0.1)

    good = await run_workload(workload(backup.id))
    assert (good.calls > 0, good.failed) == (True, 0)
    assert good.bytes_a_call == len((await stub.Get(pb.GetBackupRequest(backup_id=backup.id))).SerializeToString())
    bad = await run_workload(workload("none"))
    assert (bad.calls, bad.failed > 0) == (0, True)
