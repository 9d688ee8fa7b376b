"""Tables and targets of the results, and the documents that show them.

python -m bench.report      updates the documents from bench/results/, without measuring
"""

import json
import statistics
from pathlib import Path
from typing import Any

from bench.plot import plot

# Names of the systems and the calls for readers who do not know the code.
SYSTEMS = {
    "service": "This service",
    "constant": "grpc.aio with constant responses, no database",
    "go pass-through": "Go, stored messages passed through",
    "go": "Go, messages built from rows",
    "asyncpg": "Python, asyncpg",
    "sqlalchemy": "Python, SQLAlchemy",
}
CALLS = {"Get": "Get one backup", "List 100": "List a page of 100", "List 1000": "List a page of 1000"}

CALLS_FILE = Path("bench") / "results" / "calls.json"
_PLOT = Path("docs") / "performance.svg"
_ONE, _MANY = "1 connection", "8 connections"
# The lowest accepted ratio of calls per second to a peer, for Get, List 100 and List 1000.
_MIN_RATIOS = {
    _MANY: {"constant": (1.10, 0.75, 0.31), "go pass-through": (0.43, 0.50, 0.70), "asyncpg": (2.2, 5.0, 14.0)},
    _ONE: {"constant": (0.60, 0.48, 0.31)},
}
_MIN_SAME = 0.9  # for large catalogs and deep pages
# Fields of concurrent pages with their limits.
_LIMITS = {
    "get_p99_ms": ("Get next to 64 Lists of 1000, p99", 8.3, "ms"),
    "blocked_p99_ms": ("event loop blocked next to 64 Lists of 1000, p99", 5.0, "ms"),
    "memory_max_mb": ("memory of the service with 64 Lists of 1000", 120.0, "MB"),
}

Rounds = list[dict[str, float]]
Results = dict[str, dict[str, Any]]


def read(root: Path) -> Results:
    """Return the results of each kind of run in `bench/results`."""
    return {file.stem: json.loads(file.read_text()) for file in sorted((root / CALLS_FILE).parent.glob("*.json"))}


def update_documents(root: Path) -> None:
    """Write the plot, and the marked parts of README.md and docs/performance.md."""
    for file, text in documents(root).items():
        (root / file).write_text(text)


def documents(root: Path) -> dict[Path, str]:
    """Return the documents that show the results, with their updated texts."""
    results = read(root)
    texts = {Path("README.md"): summary(results), Path("docs") / "performance.md": tables(results)}
    rates = {
        title: {SYSTEMS[system]: _median(rounds, "calls_s") for system, rounds in _of(results, f"{call}, {_MANY}").items()}
        for call, title in CALLS.items()
    }
    note = f"Calls per second, {_MANY} of four concurrent calls each, {results['calls']['machine']}. Longer is faster."
    return {file: _replaced((root / file).read_text(), text) for file, text in texts.items()} | {_PLOT: plot(rates, note=note)}


def _replaced(document: str, text: str) -> str:
    begin, end = "<!-- Written by `make bench`. -->\n", "<!-- End of `make bench`. -->"
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def summary(results: Results) -> str:
    """Return the table of README.md."""
    return f"{_rates(results)}\n{_conditions(results['calls'])}\n"


def tables(results: Results) -> str:
    """Return all results as Markdown."""
    calls = results["calls"]
    parts = [
        _conditions(calls) + "\n",
        f"### Calls per second\n\nWith {_MANY} of four concurrent calls each:\n\n{_rates(results)}",
        f"### Targets\n\n{_targets(results)}",
        f"### Latency and CPU time\n\n{_costs(calls['calls'])}",
    ]
    if depth := calls["depth"]:
        parts.append(f"### Deep pages\n\nPages of 100 in a folder of {calls['backups'] // 2:,} backups:\n\n{_costs(depth)}")
    if scale := results.get("scale"):
        parts.append(f"### Catalog size\n\nThe service with catalogs of different sizes. {_conditions(scale)}\n\n{_costs(scale['calls'])}")
    if imported := calls.get("import"):
        parts.append(f"### Imports\n\n{_imports(imported)}")
    if counted := results.get("instructions"):
        parts.append(f"### Instructions per call\n\n{_instructions(counted['instructions'])}")
    return "\n".join(parts)


def _conditions(results: dict[str, Any]) -> str:
    return (
        f"{results['machine']}, {results['interpreter']}, {results['at'][:10]}. "
        f"Values are medians; rounds: {results['rounds']}, of {results['seconds']:g} s each."
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _median(rounds: Rounds, field: str) -> float:
    return statistics.median(measured[field] for measured in rounds)


def _of(results: Results, case: str) -> dict[str, Rounds]:
    """Return the measured systems of a case, in the order of their names above."""
    measured = results["calls"]["calls"][case]
    return {system: measured[system] for system in SYSTEMS if system in measured}


def _ratio(ours: Rounds, theirs: Rounds) -> float:
    """Return the median of each round's ratio of calls per second."""
    return statistics.median(our["calls_s"] / their["calls_s"] for our, their in zip(ours, theirs, strict=True))


def _rates(results: Results) -> str:
    """Return calls per second of each system, with the ratio of the service's to them."""
    cases = [_of(results, f"{call}, {_MANY}") for call in CALLS]
    rows = []
    for system in cases[0]:
        cells = [
            f"{_median(case[system], 'calls_s'):,.0f}" + ("" if system == "service" else f" ({_ratio(case['service'], case[system]):.2f})")
            for case in cases
        ]
        rows.append([SYSTEMS[system], *cells])
    text = "\nIn brackets: calls per second of this service, divided by those of the other implementation.\n"
    return _table(["Calls per second", *CALLS.values()], rows) + text


def _targets(results: Results) -> str:
    """Return the targets that these results can be compared with, and if each holds."""
    rows = [
        _at_least(f"{call}, {clients}, ratio to *{peer}*", bound, case["service"], case[peer])
        for clients, peers in _MIN_RATIOS.items()
        for peer, bounds in peers.items()
        for call, bound in zip(CALLS, bounds, strict=True)
        if peer in (case := _of(results, f"{call}, {clients}"))
    ]
    if depth := results["calls"]["depth"]:
        rows.append(_at_least("last page, ratio to the first", _MIN_SAME, depth["last page"]["service"], depth["first page"]["service"]))
    for case_name, sizes in results.get("scale", {"calls": {}})["calls"].items():
        small, *_, large = sizes
        rows.append(_at_least(f"{case_name}, {large} backups, ratio to {small}", _MIN_SAME, sizes[large], sizes[small]))
    pages = results["calls"]["concurrent_pages"]
    for field, (measurement, limit, unit) in _LIMITS.items():
        value = pages[field]
        rows.append([measurement, f"at most {limit:g} {unit}", f"{value:.1f} {unit}", _holds(value <= limit)])
    text = (
        f"\nNext to 64 Lists of 1000, a Get takes {pages['get_p50_ms']:.1f} ms (p50) and {pages['get_p99_ms']:.1f} ms (p99). "
        f"The event loop is blocked for at most {pages['blocked_max_ms']:.1f} ms.\n"
    )
    return _table(["Measurement", "Target", "Result", "Reached"], rows) + text


def _at_least(measurement: str, bound: float, ours: Rounds, theirs: Rounds) -> list[str]:
    value = round(_ratio(ours, theirs), 2)
    return [measurement, f"at least {bound:.2f}", f"{value:.2f}", _holds(value >= bound)]


def _holds(reached: bool) -> str:
    return "yes" if reached else "**no**"


def _costs(cases: dict[str, dict[str, Rounds]]) -> str:
    fields = ("calls_s", "p50_ms", "p99_ms", "server_us", "postgres_us")
    digits = dict.fromkeys(fields, 0) | {"p50_ms": 2, "p99_ms": 2}
    rows = [
        [case, system, *(f"{_median(rounds, field):,.{digits[field]}f}" for field in fields)]
        for case, systems in cases.items()
        for system, rounds in systems.items()
    ]
    return _table(["Case", "", "Calls/s", "p50 ms", "p99 ms", "Server, CPU µs per call", "PostgreSQL, CPU µs per call"], rows)


def _imports(measured: dict[str, Any]) -> str:
    rows = [[name, f"{measured[name]['seconds']:.0f}", f"{measured[name]['memory_max_mb']:.0f}"] for name in ("first", "unchanged")]
    return f"A WAL-G listing of {measured['entries']:,} entries on one line:\n\n" + _table(["Import", "Seconds", "Memory, MB"], rows)


def _instructions(counted: dict[str, dict[str, int]]) -> str:
    systems = list(next(iter(counted.values())))
    rows = [[system, *(f"{counts[system]:,}" for counts in counted.values())] for system in systems]
    return "Instructions of the server in user space, counted by callgrind:\n\n" + _table(["", *counted], rows)


if __name__ == "__main__":
    update_documents(Path(__file__).parents[1])
