"""Processes of the service and its peers, and measurements of their CPU time."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from typing import IO, NamedTuple

from bench.load import Result, Workload
from service.dev.embedded_postgres import EmbeddedPostgres

_ROOT = Path(__file__).parents[1]
_START_TIMEOUT_S = 30
_SCRAPE_PERIOD_S = 5


class System(NamedTuple):
    """A running server."""

    name: str
    pid: int
    address: str

    def memory_mb(self) -> tuple[float, float]:
        """Return the current and the maximum resident size."""
        facts = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return int(facts["VmRSS"].split()[0]) / 1024, int(facts["VmHWM"].split()[0]) / 1024


class Measure(NamedTuple):
    """Measurement of one case on one system."""

    calls_s: float
    p50_ms: float
    p99_ms: float
    server_us: float
    """CPU time of the server per call."""
    postgres_us: float
    """CPU time of PostgreSQL per call."""
    bytes_a_call: float
    client_us: float
    """CPU time of the load generator per call."""


@contextmanager
def service(url: str, folder: Path, *, name: str = "service", **settings: str) -> Iterator[System]:
    """Run `serve` as in production: each call is logged to a file, and metrics are scraped."""
    port, metrics = _free_port(), _free_port()
    address = f"127.0.0.1:{port}"
    environment = {"BACKUPS_DATABASE_URL": url, "BACKUPS_LISTEN": address, "BACKUPS_METRICS_LISTEN": f"127.0.0.1:{metrics}"}
    command = [sys.executable, "-m", "service", "serve"]
    with _log(folder, name).open("wb") as stderr, _running(command, environment | settings, stderr=stderr) as process:
        _wait_ready(metrics, process, stderr.name)
        with _scraped(metrics):
            yield System(name, process.pid, address)


@contextmanager
def peer(name: str, url: str, folder: Path, *, program: list[str] | None = None) -> Iterator[System]:
    """Run a peer: a module of bench/peers, or a program with the same interface."""
    command = program or [sys.executable, "-m", f"bench.peers.{name.replace(' ', '_')}"]
    with _log(folder, name).open("wb") as stderr, _running([*command, url], {}, stderr=stderr, stdout=subprocess.PIPE) as process:
        yield System(name, process.pid, _address(process, stderr.name))


@contextmanager
def measured_event_loop(url: str, folder: Path) -> Iterator[tuple[System, dict[str, float]]]:
    """Run the service and measure how long its event loop is blocked. The dictionary is filled when the context exits."""
    blocked: dict[str, float] = {}
    command = [sys.executable, "-m", "bench.event_loop", url]
    with _log(folder, "event loop").open("wb") as stderr, _running(command, {}, stderr=stderr, stdout=subprocess.PIPE) as process:
        yield System("event loop", process.pid, _address(process, stderr.name)), blocked
        process.terminate()
        assert process.stdout
        blocked |= json.load(process.stdout)


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.log"


@contextmanager
def _running(
    command: list[str], settings: dict[str, str], *, stderr: IO[bytes], stdout: int = subprocess.DEVNULL
) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"} | settings
    process = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=stdout, stderr=stderr)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _address(process: "subprocess.Popen[bytes]", log: str) -> str:
    assert process.stdout
    port = process.stdout.readline().strip()
    if not port:
        raise RuntimeError(f"the server does not start: see {log}")
    return f"127.0.0.1:{int(port)}"


def _wait_ready(metrics: int, process: "subprocess.Popen[bytes]", log: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            if b"\nbackups_ready 1" in _scrape(metrics):
                return
        time.sleep(0.005)
    raise RuntimeError(f"the service does not become ready: see {log}")


def _scrape(metrics: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as response:
        body: bytes = response.read()
    return body


@contextmanager
def _scraped(metrics: int) -> Iterator[None]:
    """Scrape metrics in the background, as Prometheus does."""
    stopped = Event()

    def scrape() -> None:
        while not stopped.wait(_SCRAPE_PERIOD_S):
            with suppress(OSError):
                _scrape(metrics)

    thread = Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process, including its finished threads: the process clock of clock_gettime(2)."""
    return time.clock_gettime((~pid << 3) | 2)


class Meter:
    """Measures the CPU time that calls take."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._postmaster = int((postgres.folder / "data" / "postmaster.pid").read_text().split("\n", 1)[0])

    def measure(self, system: System, workload: Workload) -> Measure:
        """Send a workload to a system and return its rate, latencies and CPU time.

        Raises:
            RuntimeError: a call failed, so the measurement would mean nothing.
        """
        server_before, postgres_before = _cpu_s(system.pid), self._postgres_cpu_s()
        [result] = run_workloads([workload])
        server, postgres = _cpu_s(system.pid) - server_before, self._used_since(postgres_before)
        if result.failed or not result.calls:
            raise RuntimeError(f"{system.name}: {result.failed} of {result.failed + result.calls} calls failed")
        calls = result.calls
        return Measure(
            calls_s=result.answered_per_second,
            p50_ms=result.p50_ms,
            p99_ms=result.p99_ms,
            server_us=server / calls * 1e6,
            postgres_us=postgres / calls * 1e6,
            bytes_a_call=result.bytes_a_call,
            client_us=result.client_us,
        )

    def _postgres_cpu_s(self) -> dict[int, float]:
        pids = [self._postmaster, *map(int, Path(f"/proc/{self._postmaster}/task/{self._postmaster}/children").read_text().split())]
        used = {}
        for pid in pids:
            with suppress(OSError):  # the process has just exited
                used[pid] = _cpu_s(pid)
        return used

    def _used_since(self, before: dict[int, float]) -> float:
        return sum(used - before.get(pid, 0) for pid, used in self._postgres_cpu_s().items())


def run_workloads(workloads: list[Workload]) -> list[Result]:
    """Run all workloads at the same time, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        cwd=_ROOT,
        input=json.dumps([asdict(workload) for workload in workloads]).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return [Result(**result) for result in json.loads(done.stdout)]
