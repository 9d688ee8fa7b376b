"""Compare the service with its peers over one catalog, in one run. bench/README.md describes the method and the results."""

import argparse
import json
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from bench import report
from bench.catalog import DEEP_FOLDER, Catalog, create_catalog, warm
from bench.imports import measure_import
from bench.load import Workload
from bench.systems import Measure, Meter, System, measured_event_loop, peer, run_workloads, service
from service import VERSION, pb
from service.backup import Position
from service.dev.embedded_postgres import EmbeddedPostgres
from service.page_token import PageTokens, TokenScope

_ROOT = Path(__file__).parents[1]
_PEERS = ("constant", "sqlalchemy", "asyncpg", "go", "no interceptor", "no log")
_FOLDERS = 100
_ONE, _MANY = (1, 1), (8, 4)  # connections, concurrent calls of each
_SCALE = (10_000, 1_000_000, 10_000_000)
_RARE_CHECKPOINTS = {"max_wal_size": "8GB", "checkpoint_timeout": "30min"}  # a checkpoint would slow down the case that is running

Measures = dict[str, dict[str, list[Measure]]]
"""By case and system, one for each round."""


class Case(NamedTuple):
    """A method, its requests, and the number of connections."""

    name: str
    method: str
    bodies: list[str]
    connections: int
    calls_at_once: int

    def workload(self, system: System, seconds: float) -> Workload:
        path = f"/{pb.BACKUP_SERVICE}/{self.method}"
        return Workload(system.address, path, self.bodies, self.connections, self.calls_at_once, seconds)


def _get(catalog: Catalog) -> list[str]:
    return [pb.GetBackupRequest(backup_id=backup_id).SerializeToString().hex() for backup_id in catalog.ids]


def _list(folders: list[str], size: int, token: str = "") -> list[str]:
    requests = (pb.ListBackupsRequest(folder_id=folder, page_size=size, page_token=token) for folder in folders)
    return [request.SerializeToString().hex() for request in requests]


def _cases(catalog: Catalog, connections: tuple[tuple[int, int], ...] = (_ONE, _MANY)) -> list[Case]:
    calls = (
        ("Get", "Get", _get(catalog)),
        ("List 100", "List", _list(catalog.folders, 100)),
        ("List 1000", "List", _list(catalog.folders, 1000)),
    )
    return [
        Case(f"{name}, {count} connection{'s' * (count > 1)}", method, bodies, count, concurrent)
        for count, concurrent in connections
        for name, method, bodies in calls
    ]


class Bench:
    """A run of the benchmark, with its PostgreSQL and its results."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        self._options, self._progress = options, progress
        self._folder: Path = options.data
        memory_mb = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
        settings = _RARE_CHECKPOINTS | {"shared_buffers": f"{min(memory_mb // 3, 8192)}MB"}
        self._postgres = EmbeddedPostgres(self._folder / "postgres", settings=settings)
        self.results: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": VERSION,
            "python": platform.python_version(),
            "machine": f"{report.processor()}, {report.processors()} processors",
            "options": {name: str(value) for name, value in vars(options).items() if not isinstance(value, Path)},
        }

    def run(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._postgres.running())
            if self._options.scale:
                self._scale(stack)
            else:
                self._default(stack)

    def _default(self, stack: ExitStack) -> None:
        backups = self._options.backups
        catalog = create_catalog(self._postgres, backups=backups, folders=_FOLDERS, deep=backups, progress=self._progress)
        url = self._url(catalog)
        warm(self._postgres.url(catalog.name))
        self.results["start_to_ready_s"] = self._starts(url)
        systems = self._started(url, stack)
        self.results["calls"] = self._rounds("Calls", [[case] * len(systems) for case in _cases(catalog)], systems)
        paged = [system for system in systems if system.name in ("service", "sqlalchemy")]
        self.results["depth"] = self._depth(catalog, paged)
        self.results["concurrent_pages"] = self._concurrent_pages(catalog, systems[0])
        with measured_event_loop(url, self._folder) as (system, blocked):
            if failed := self._concurrent_pages(catalog, system)["failed"]:
                raise RuntimeError(f"{system.name}: {failed:.0f} calls failed")
        self.results["concurrent_pages"] |= blocked
        if self._options.imports:
            self.results["import"] = measure_import(self._postgres, self._folder, entries=self._options.imports, progress=self._progress)

    def _url(self, catalog: Catalog) -> str:
        return self._postgres.url(catalog.name, user="backups_service")

    def _started(self, url: str, stack: ExitStack) -> list[System]:
        systems = [stack.enter_context(service(url, self._folder))]
        for name in self._options.peers:
            if name == "no log":  # the service without a log line for each call
                systems.append(stack.enter_context(service(url, self._folder, name=name, BACKUPS_LOG_LEVEL="warning")))
            elif name != "go":
                systems.append(stack.enter_context(peer(name, url, self._folder)))
            elif program := self._built_go():
                systems.append(stack.enter_context(peer(name, url, self._folder, program=[str(program)])))
        return systems

    def _built_go(self) -> Path | None:
        if not shutil.which("go"):
            self._progress.print("The peer in Go is left out, because there is no Go toolchain.")
            return None
        program = self._folder / "go-peer"
        built = subprocess.run([_ROOT / "bench/peers/go/build", program], capture_output=True, text=True)
        if built.returncode:
            self._progress.print(f"The peer in Go is left out, because its build failed: {built.stderr.strip()[-500:]}")
            return None
        return program

    def _rounds(self, title: str, cases: list[list[Case]], systems: list[System]) -> Measures:
        """Measure each system in turn in each round, so that other load on the machine affects all of them.

        Args:
            title: title of the progress bar.
            cases: for each row of the table, one case for each system; the cases of a row have the same name.
            systems: the systems, in the order of the cases of a row.
        """
        meter = Meter(self._postgres)
        measures: Measures = {row[0].name: {system.name: [] for system in systems} for row in cases}
        task = self._progress.add_task(title, total=(self._options.rounds + 1) * len(cases) * len(systems))
        for number in range(self._options.rounds + 1):
            for row in cases:
                for case, system in zip(row, systems, strict=True):
                    seconds = self._options.seconds if number else self._options.seconds / 4  # the first round warms up
                    measure = meter.measure(system, case.workload(system, seconds))
                    if number:
                        measures[case.name][system.name].append(measure)
                    self._progress.advance(task)
        return measures

    def _depth(self, catalog: Catalog, systems: list[System]) -> Measures:
        """Measure the first and the last page of the deep folder."""
        if catalog.deepest is None:
            return {}
        created_at, backup_id = catalog.deepest
        tokens = {
            "service": PageTokens().seal(Position(created_at, backup_id), TokenScope(f"/{pb.BACKUP_SERVICE}/List", DEEP_FOLDER)),
            "sqlalchemy": str((catalog.depth - 1) * 100),
        }
        first = Case("page 1", "List", _list([DEEP_FOLDER], 100), *_ONE)
        last = [Case(f"page {catalog.depth:,}", "List", _list([DEEP_FOLDER], 100, tokens[system.name]), *_ONE) for system in systems]
        return self._rounds("Depth", [[first] * len(systems), last], systems)

    def _concurrent_pages(self, catalog: Catalog, system: System) -> dict[str, float]:
        """Send 64 concurrent Lists of 1000, and one Get after the other next to them."""
        lists = Case("", "List", _list(catalog.folders, 1000), 16, 4)
        gets = Case("", "Get", _get(catalog), 1, 1)
        memory_before, _ = system.memory_mb()
        listed, got = run_workloads([case.workload(system, self._options.seconds * 3) for case in (lists, gets)])
        memory_after, memory_max = system.memory_mb()
        return {
            "memory_before_mb": memory_before, "memory_after_mb": memory_after, "memory_max_mb": memory_max,
            "failed": listed.failed + got.failed,
            "list_p50_ms": listed.p50_ms, "list_p99_ms": listed.p99_ms, "get_p50_ms": got.p50_ms, "get_p99_ms": got.p99_ms,
        }  # fmt: skip

    def _starts(self, url: str) -> float:
        return statistics.median(_start_s(url, self._folder) for _ in range(self._options.rounds))

    def _scale(self, stack: ExitStack) -> None:
        """Measure the same calls over catalogs of several sizes, and then each of them after a restart of PostgreSQL."""
        sizes = self._options.sizes
        catalogs = []
        for size in sizes:
            folders = max(min(_FOLDERS, size // 1000), 1)  # so that each folder has a page of a thousand
            catalogs.append(create_catalog(self._postgres, backups=size, folders=folders, deep=0, progress=self._progress))
        for catalog in catalogs:
            warm(self._postgres.url(catalog.name))
        self.results["sizes"] = [report.sizes(self._postgres.url(catalog.name)) for catalog in catalogs]
        with ExitStack() as services:
            systems = [
                services.enter_context(service(self._url(catalog), self._folder, name=f"{size:,}"))
                for catalog, size in zip(catalogs, sizes, strict=True)
            ]
            cases = zip(*(_cases(catalog, (_MANY,)) for catalog in catalogs), strict=True)
            self.results["scale"] = self._rounds("Sizes", [list(row) for row in cases], systems)
        self.results["cold"] = [self._cold(catalog, size, stack) for catalog, size in zip(catalogs, sizes, strict=True)]

    def _cold(self, catalog: Catalog, size: int, stack: ExitStack) -> dict[str, Any]:
        """Count the blocks that random Gets and first pages read from empty buffers."""
        measured: dict[str, Any] = {"backups": size}
        url = self._postgres.url(catalog.name)
        for case in _cases(catalog, (_ONE,)):
            stack.close()
            stack.enter_context(self._postgres.running())
            before = report.blocks_read(url)
            with service(self._url(catalog), self._folder) as system:
                [result] = run_workloads([case.workload(system, self._options.seconds / 4)])
            measured[case.name] = {"calls": result.calls, "p99_ms": result.p99_ms, "blocks_read": report.blocks_read(url) - before}
        return measured


def _start_s(url: str, folder: Path) -> float:
    began = time.monotonic()
    with service(url, folder, name="start"):
        return time.monotonic() - began


@contextmanager
def _progress() -> Iterator[Progress]:
    with Progress(console=Console(stderr=True)) as progress:
        yield progress


def _peers(text: str) -> list[str]:
    return [name.replace("-", " ") for name in text.split(",") if name]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--backups", type=int, default=1_000_000, help="backups in 100 folders; one more folder has the same number")
    parser.add_argument(
        "--peers", type=_peers, default=list(_PEERS), help="separated by commas, with - for spaces, such as constant,no-log"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds; results are medians")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of each case")
    parser.add_argument("--imports", type=int, default=1_000_000, help="entries of the imported listing; 0 for no import")
    parser.add_argument("--scale", action="store_true", help="measure catalogs of several sizes instead of peers, also with empty buffers")
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(size) for size in text.split(",")],
        default=list(_SCALE),
        help="backups of each catalog of --scale",
    )
    parser.add_argument(
        "--data", type=Path, default=_ROOT / ".data" / "bench", help="folder of PostgreSQL, whose catalogs are used again, and of logs"
    )
    parser.add_argument("--output", type=Path, default=_ROOT / "bench" / "results", help="folder of the results: tables, JSON and plot")
    options = parser.parse_args()
    if unknown := set(options.peers) - set(_PEERS):
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Run the benchmark, print the tables and write the results."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops all child processes
    options = _options()
    options.data.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    with _progress() as progress:
        bench = Bench(options, progress)
        bench.run()
    name = "scale" if options.scale else "calls"
    tables = report.tables(bench.results)
    (options.output / f"{name}.md").write_text(tables)
    (options.output / f"{name}.json").write_text(json.dumps(report.plain(bench.results), indent=1) + "\n")
    if not options.scale and not report.plot(bench.results, options.output / "calls.png"):
        print("The plot is left out, because matplotlib is not installed (`make bench` installs it).", file=sys.stderr)
    print(tables)


if __name__ == "__main__":
    main()
