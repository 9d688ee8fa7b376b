"""The benchmark: a short run, the comparison of responses, and how its load generator counts responses."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench.catalog import Catalog
from bench.interpreter import is_optimized
from bench.load import Workload, run_workloads
from bench.report import documents, read, tables
from bench.responses import check_responses
from bench.systems import System
from service import pb
from service.server import Server
from tests.support import processes
from tests.support.catalog import AddBackups
from tests.support.commands import environment
from tests.support.repository import ROOT

_CASES = {f"{call}, {over}" for call in ("Get", "List 100", "List 1000") for over in ("1 connection", "8 connections")}


@pytest.mark.slow
@pytest.mark.timeout(180)  # about fifteen seconds on an idle machine, because it starts a dozen processes
async def test_a_short_run(tmp_path: Path) -> None:
    """`python -m bench` fills a catalog, compares and measures the service and peers, and writes results and documents."""
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/performance.md"):
        shutil.copy(ROOT / page, tmp_path / page)
    done = await processes.run(
        *(sys.executable, "-m", "bench", "--backups", "300", "--peers", "asyncpg,constant", "--rounds", "1", "--seconds", "0.1"),
        *("--imports", "50", "--data", tmp_path / "data", "--output", tmp_path),
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr.decode()
    results = json.loads((tmp_path / "bench" / "results" / "calls.json").read_text())
    assert results["calls"].keys() == _CASES
    for systems in results["calls"].values():
        assert systems.keys() == {"service", "asyncpg", "constant"}
        for name, [measure] in systems.items():
            assert all(measure[field] > 0 for field in ("calls_s", "p50_ms", "p99_ms", "server_us"))
            assert name == "constant" or measure["postgres_us"] > 0
    assert results["depth"].keys() == {"first page", "last page"}
    assert 0 < results["concurrent_pages"]["blocked_p99_ms"] <= results["concurrent_pages"]["blocked_max_ms"]
    assert results["import"]["unchanged"]["seconds"] > 0
    assert documents(tmp_path) == {file: (tmp_path / file).read_text() for file in documents(tmp_path)}
    logged = [json.loads(line) for line in (tmp_path / "data" / "service.log").read_text().splitlines()]
    assert sum(line["event"] == "call" for line in logged) > len(_CASES)


def test_documents_show_the_results() -> None:
    """README, docs/performance.md and the plot show the results in bench/results."""
    assert {file: (ROOT / file).read_text() for file in documents(ROOT)} == documents(ROOT)


@pytest.fixture(name="other_size")
async def _other_size(stub: pb.BackupServiceStub) -> AsyncIterator[str]:
    """Yield a peer that returns another size of each backup in a page."""

    async def list_(body: bytes, context: object) -> bytes:
        page = await stub.List(pb.ListBackupsRequest.FromString(body))
        for backup in page.backups:
            backup.size += 1
        return page.SerializeToString()

    async def get(body: bytes, context: Any) -> bytes:
        try:
            return (await stub.Get(pb.GetBackupRequest.FromString(body))).SerializeToString()
        except grpc.RpcError as error:
            return await context.abort(error.code())  # type: ignore[no-any-return]

    handlers: dict[str, Any] = {"Get": grpc.unary_unary_rpc_method_handler(get), "List": grpc.unary_unary_rpc_method_handler(list_)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(pb.BACKUP_SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_other_responses_are_errors(server: Server, other_size: str, add_backups: AddBackups, tmp_path: Path) -> None:
    """The benchmark stops if a peer returns another response than the service."""
    backups = await add_backups(201, folder_id="f1")
    catalog = Catalog("", ["f1"], [backup.id for backup in backups], before_last_page=None)
    process = subprocess.Popen[bytes](["true"])
    process.wait()
    service, same, other = (
        System(name, process, tmp_path, address)
        for name, address in (("service", str(server.address)), ("same", str(server.address)), ("other", other_size))
    )
    compared = await asyncio.to_thread(check_responses, [service, same], catalog)
    assert compared == 10 + 1 + (3 + 3 + 1) + 2 * 3  # Gets, one of them absent; pages of the folder and of two absent ones
    with pytest.raises(RuntimeError, match=r"other and service return different responses to List f1, page 1 of 0, continued"):
        await asyncio.to_thread(check_responses, [service, other], catalog)


@pytest.mark.parametrize(("factor", "reached"), [(0.01, "**no**"), (100, "yes")])
def test_targets_are_compared(factor: float, reached: str) -> None:
    """The report compares the service's calls per second with each peer's, and states if a target is reached."""
    results = read(ROOT)
    for systems in results["calls"]["calls"].values():
        for measured in systems["service"]:
            measured["calls_s"] *= factor
    rows = re.findall(r"^\| (.+?), ratio to \*(.+?)\* \| at least .+ \| .+ \| (.+) \|$", tables(results), re.MULTILINE)
    assert len(rows) == 3 * 4
    assert {result for *_, result in rows} == {reached}


def test_newest_optimized_cpython(tmp_path: Path) -> None:
    """The benchmark prefers an optimized CPython to a newer one that is not, and passes over programs that do not run."""
    programs = {"python3.14": "exit 1", "python3.13": "exit 127", "python3.12": "echo /newest", "python3.11": "echo /older"}
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    command = ["make", "-s", "--eval", "selected: ; @echo $(BENCH_PYTHON)", "selected"]
    found = subprocess.run(command, cwd=ROOT, env={"PATH": f"{tmp_path}:{os.defpath}"}, capture_output=True, text=True, check=True)
    assert found.stdout == "/newest\n"


def test_optimized_cpython_prints_its_path() -> None:
    """`bench/interpreter.py` prints the path of an optimized CPython, and exits with 1 on another one."""
    done = subprocess.run([sys.executable, str(ROOT / "bench" / "interpreter.py")], capture_output=True, text=True, check=False)
    expected = (0, f"{Path(sys.executable).resolve()}\n") if is_optimized() else (1, "")
    assert (done.returncode, done.stdout) == expected


async def test_errors_are_not_counted_as_calls(server: Server, add_backups: AddBackups) -> None:
    """The load generator counts only responses with a message as calls."""
    [backup] = await add_backups()
    path = f"/{pb.BACKUP_SERVICE}/Get"

    def workload(*ids: str) -> Workload:
        return Workload(str(server.address), path, [pb.GetBackupRequest(backup_id=id_).SerializeToString().hex() for id_ in ids], 2, 2, 0.1)

    good, bad = await asyncio.to_thread(run_workloads, workload(backup.id), workload("none"))
    assert (good.calls > 0, good.errors) == (True, {})
    assert (bad.calls, bad.errors) == (0, {"NOT_FOUND": bad.failed})
