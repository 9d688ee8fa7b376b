"""Processes of the service and its peers, and measurements of a workload on them."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench.load import Result, Workload, run_workloads

SERVICE, EVENT_LOOP = "service", "event loop"
PEERS = ("constant", "sqlalchemy", "asyncpg", "go", "go pass-through")

_ROOT = Path(__file__).parents[1]
_ARGUMENTS = {SERVICE: ["-m", "service", "serve"], EVENT_LOOP: ["-m", "bench.event_loop"]}
_GO = {"go": "rows", "go pass-through": "passthrough"}
_ANY_PORT = "127.0.0.1:0"
_START_TIMEOUT_S = 300  # callgrind makes the start fifty times slower
_STOP_TIMEOUT_S = 60
_CALLGRIND_DEADLINE_S = 600


class System(NamedTuple):
    """A running server."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    address: str

    def memory_max_mb(self) -> float:
        """Return the maximum resident size."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

    def stop(self) -> str:
        """Stop gracefully. Return the last line of the log."""
        self.process.terminate()
        self.process.wait(_STOP_TIMEOUT_S)
        return self.log.read_text().splitlines()[-1]


@contextmanager
def running(name: str, url: str, folder: Path, *, label: str = "", prefix: tuple[str, ...] = ()) -> Iterator[System]:
    """Run the service as in production, or a peer. Each logs to a file in the folder, and its address first.

    Args:
        name: `SERVICE`, `EVENT_LOOP` or one of `PEERS`.
        url: of the catalog's database.
        folder: for logs; `build_go` has built the programs in it.
        label: name of the system in the results, if it differs.
        prefix: command that runs the server's command.
    """
    command = [str(folder / "go" / _GO[name])] if name in _GO else [sys.executable, *_ARGUMENTS.get(name, ["-m", f"bench.peers.{name}"])]
    settings = {"BACKUPS_DATABASE_URL": url, "BACKUPS_LISTEN": _ANY_PORT, "BACKUPS_METRICS_LISTEN": _ANY_PORT, "BACKUPS_DRAIN_DELAY": "0"}
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"} | settings
    if name == EVENT_LOOP:
        environment["GRPC_EXPERIMENTS"] = "-event_engine_listener"  # as service/__main__.py sets it
    log = folder / f"{label or name}.log".replace(" ", "-")
    with log.open("wb") as output:
        process = subprocess.Popen([*prefix, *command], cwd=_ROOT, env=environment, stdout=output, stderr=output)
    try:
        yield System(label or name, process, log, _address(process, log))
    finally:
        process.kill()
        process.wait()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait until the server has logged its address."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with log.open() as lines:
            for line in lines:
                if '"listening"' in line and line.endswith("}\n"):
                    return str(json.loads(line)["address"])
        time.sleep(0.02)
    raise RuntimeError(f"the server does not start: see {log}")


def build_go(folder: Path) -> str:
    """Build the peers in Go. Return the reason if this is not possible, or else an empty text."""
    if not shutil.which("go"):
        return "there is no Go toolchain on the PATH"
    built = subprocess.run([_ROOT / "bench/peers/go/build", folder / "go", sys.executable], capture_output=True, text=True)
    return f"their build failed: {built.stderr.strip()[-500:]}" if built.returncode else ""


def send(*workloads: Workload) -> list[Result]:
    """Run all workloads at the same time.

    Raises:
        RuntimeError: a call failed, so the measurement is invalid.
    """
    results = run_workloads(*workloads)
    for result in results:
        if result.failed or not result.calls:
            raise RuntimeError(f"{result.failed} of {result.failed + result.calls} calls failed: {result.errors}")
    return results


def measure(system: System, workload: Workload, postmaster: int) -> dict[str, float]:
    """Send a workload to a system. Return calls per second, latencies in ms, and CPU time in µs per call of server and PostgreSQL."""
    server, postgres = _cpu_s(system.process.pid), _postgres_cpu_s(postmaster)
    [result] = send(workload)
    server_us = (_cpu_s(system.process.pid) - server) / result.calls * 1e6
    postgres_s = sum(used - postgres.get(pid, 0) for pid, used in _postgres_cpu_s(postmaster).items())
    values = {
        "calls_s": result.answered_per_second, "p50_ms": result.p50_ms, "p99_ms": result.p99_ms,
        "server_us": server_us, "postgres_us": postgres_s / result.calls * 1e6,
    }  # fmt: skip
    return {name: round(value, 3) for name, value in values.items()}


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process, including its finished threads: the process clock of clock_gettime(2)."""
    return time.clock_gettime((~pid << 3) | 2)


def _postgres_cpu_s(postmaster: int) -> dict[int, float]:
    pids = [postmaster, *map(int, Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split())]
    used = {}
    for pid in pids:
        with suppress(OSError):  # the process has just exited
            used[pid] = _cpu_s(pid)
    return used


def callgrind(folder: Path) -> tuple[str, ...]:
    """Return the command that runs a program under callgrind, whose dumps are written to the folder."""
    return ("valgrind", "--tool=callgrind", "--quiet", f"--callgrind-out-file={folder}/callgrind.%p")


def instructions_per_call(system: System, workload: Workload, folder: Path) -> int:
    """Return the instructions of a system in user space for each call of a workload. The system runs under `callgrind(folder)`."""
    pid = system.process.pid
    workload = replace(workload, deadline_s=_CALLGRIND_DEADLINE_S)
    send(workload)  # fills caches
    subprocess.run(["callgrind_control", "--zero", str(pid)], check=True, stdout=subprocess.DEVNULL)
    [result] = send(workload)
    subprocess.run(["callgrind_control", "--dump", str(pid)], check=True, stdout=subprocess.DEVNULL)
    dump = max(folder.glob(f"callgrind.{pid}.*"), key=lambda file: int(file.suffix[1:]))
    totals = next(line for line in dump.read_text().splitlines() if line.startswith("totals:"))
    return int(totals.split()[1]) // result.calls
