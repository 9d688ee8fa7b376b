"""The measurements of each kind of run: calls, catalog sizes, and instructions of a call."""

import argparse
import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from bench.catalog import DEEP_FOLDER, DEEP_PAGE, Catalog, create_catalog
from bench.imports import measure_import
from bench.load import Workload
from bench.responses import check_responses
from bench.systems import EVENT_LOOP, PEERS, SERVICE, System, build_go, callgrind, instructions_per_call, measure, running, send
from service import pb
from service.backup import Position
from service.dev.embedded_postgres import EmbeddedPostgres
from service.page_token import PageTokens, TokenScope

Measures = dict[str, dict[str, list[dict[str, float]]]]
"""By case and system, one for each round."""

# A checkpoint would slow down the case that is running.
_POSTGRES = {"max_wal_size": "8GB", "checkpoint_timeout": "30min"}
_LIST = f"/{pb.BACKUP_SERVICE}/List"
_GET = f"/{pb.BACKUP_SERVICE}/Get"


class Clients(NamedTuple):
    """Connections, and concurrent calls of each."""

    connections: int
    concurrent_calls: int

    def __str__(self) -> str:
        return f"{self.connections} connection{'s' * (self.connections > 1)}"


_ONE, _MANY, _PAGING = Clients(1, 1), Clients(8, 4), Clients(16, 4)


class Case(NamedTuple):
    """A method with its requests, and the clients that send them."""

    name: str
    path: str
    bodies: list[str]
    clients: Clients

    def workload(self, system: System, seconds: float) -> Workload:
        return Workload(system.address, self.path, self.bodies, *self.clients, seconds)


def _gets(catalog: Catalog, clients: Clients) -> Case:
    bodies = [pb.GetBackupRequest(backup_id=backup_id).SerializeToString().hex() for backup_id in catalog.ids]
    return Case(f"Get, {clients}", _GET, bodies, clients)


def _lists(folders: list[str], size: int, clients: Clients, *, token: str = "", name: str = "") -> Case:
    requests = (pb.ListBackupsRequest(folder_id=folder, page_size=size, page_token=token) for folder in folders)
    return Case(name or f"List {size}, {clients}", _LIST, [request.SerializeToString().hex() for request in requests], clients)


def _cases(catalog: Catalog, *all_clients: Clients) -> list[Case]:
    return [
        case
        for clients in all_clients
        for case in (_gets(catalog, clients), _lists(catalog.folders, 100, clients), _lists(catalog.folders, 1000, clients))
    ]


class Bench:
    """A PostgreSQL with catalogs, and the measurements over them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folder: Path = options.data
        memory_mb = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
        settings = _POSTGRES | {"shared_buffers": f"{min(memory_mb // 3, 8192)}MB"}
        self._postgres = EmbeddedPostgres(self._folder / "postgres", settings=settings)

    def calls(self) -> dict[str, Any]:
        """Compare the service with its peers, and measure deep pages, concurrent pages and an import."""
        with self._postgres.running(), ExitStack() as stack:
            catalog = self._catalog(self._options.backups, deep=self._options.backups)
            names = (SERVICE, *self._peers())
            systems = [stack.enter_context(running(name, self._url(catalog), self._folder)) for name in names]
            self._compare(systems, catalog)
            results: dict[str, Any] = {"backups": 2 * self._options.backups}
            results["calls"] = self._rounds("Calls", [[case] * len(systems) for case in _cases(catalog, _ONE, _MANY)], systems)
            results["depth"] = self._depth(catalog, systems[0])
            results["concurrent_pages"] = self._concurrent_pages(catalog)
            if self._options.imports:
                _report(f"Importing a listing of {self._options.imports:,} entries twice")
                imported = measure_import(self._postgres, self._folder, entries=self._options.imports)
                results["import"] = {"entries": self._options.imports} | imported
        return results

    def scale(self) -> dict[str, Any]:
        """Measure the same calls over catalogs of several sizes."""
        sizes = self._options.sizes
        with self._postgres.running(), ExitStack() as stack:
            catalogs = [self._catalog(size, deep=0) for size in sizes]
            systems = [
                stack.enter_context(running(SERVICE, self._url(catalog), self._folder, label=f"{size:,}"))
                for catalog, size in zip(catalogs, sizes, strict=True)
            ]
            rows = zip(*(_cases(catalog, _MANY) for catalog in catalogs), strict=True)
            return {"calls": self._rounds("Sizes", [list(row) for row in rows], systems)}

    def instructions(self) -> dict[str, Any]:
        """Count the instructions of a call: those of a server in user space, which other load does not affect."""
        with self._postgres.running():
            catalog = self._catalog(self._options.backups, deep=self._options.backups)
            counted: dict[str, dict[str, int]] = {}
            dumps = self._folder / "callgrind"
            shutil.rmtree(dumps, ignore_errors=True)
            dumps.mkdir()
            for name in (SERVICE, *self._peers()):
                with running(name, self._url(catalog), self._folder, prefix=callgrind(dumps)) as system:
                    for case in _cases(catalog, _MANY):
                        workload = case.workload(system, self._options.seconds * 10)
                        counted.setdefault(case.name, {})[name] = instructions_per_call(system, workload, dumps)
        return {"instructions": counted}

    def _catalog(self, backups: int, *, deep: int) -> Catalog:
        _report(f"Preparing a catalog of {backups + deep:,} backups")
        return create_catalog(self._postgres, backups=backups, deep=deep)

    def _url(self, catalog: Catalog) -> str:
        return self._postgres.url(catalog.name, user="backups_service")

    def _peers(self) -> list[str]:
        """Return the names of the selected peers that can run here."""
        selected = [name for name in PEERS if name in self._options.peers]
        if any(name.startswith("go") for name in selected) and (reason := build_go(self._folder)):
            _report(f"The peers in Go are left out: {reason}.")
            return [name for name in selected if not name.startswith("go")]
        return selected

    def _compare(self, systems: list[System], catalog: Catalog) -> None:
        compared = [system for system in systems if system.name != "constant"]  # whose responses are not those of the catalog
        count = check_responses(compared, catalog)
        _report(f"{count} responses of {', '.join(system.name for system in compared)} are equal.")

    def _rounds(self, title: str, cases: list[list[Case]], systems: list[System]) -> Measures:
        """Measure each system in turn in each round, so that other load on the machine affects all of them.

        Args:
            title: title of progress messages.
            cases: for each row of the table, one case for each system; the cases of a row have the same name.
            systems: the systems, in the order of the cases of a row.
        """
        postmaster = int((self._postgres.data / "postmaster.pid").read_text().split("\n", 1)[0])
        measures: Measures = {row[0].name: {system.name: [] for system in systems} for row in cases}
        for number in range(self._options.rounds + 1):
            _report(f"{title}: {f'round {number} of {self._options.rounds}' if number else 'warming up'}")
            for row in cases:
                for case, system in zip(row, systems, strict=True):
                    seconds = self._options.seconds if number else self._options.seconds / 4  # the first round warms up
                    measured = measure(system, case.workload(system, seconds), postmaster)
                    if number:
                        measures[case.name][system.name].append(measured)
        return measures

    def _depth(self, catalog: Catalog, system: System) -> Measures:
        """Measure the first and the last page of the deep folder."""
        if catalog.before_last_page is None:
            return {}
        token = PageTokens().seal(Position(*catalog.before_last_page), TokenScope(_LIST, DEEP_FOLDER))
        first = _lists([DEEP_FOLDER], DEEP_PAGE, _ONE, name="first page")
        last = _lists([DEEP_FOLDER], DEEP_PAGE, _ONE, token=token, name="last page")
        return self._rounds("Depth", [[first], [last]], [system])

    def _concurrent_pages(self, catalog: Catalog) -> dict[str, float]:
        """Send 64 concurrent Lists of 1000 and, at the same time, one Get after the other. Measure the service's event loop."""
        with running(EVENT_LOOP, self._url(catalog), self._folder) as system:
            lists, gets = _lists(catalog.folders, 1000, _PAGING), _gets(catalog, _ONE)
            _, got = send(*(case.workload(system, self._options.seconds * 5) for case in (lists, gets)))
            measured = {"get_p50_ms": got.p50_ms, "get_p99_ms": got.p99_ms, "memory_max_mb": system.memory_max_mb()}
            blocked: dict[str, float] = json.loads(system.stop())
        return {name: round(value, 2) for name, value in (measured | blocked).items()}


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
