"""Tables, JSON and plot of a run."""

import asyncio
import os
import statistics
import time
from pathlib import Path
from typing import Any

import asyncpg

_SERVICE = "service"

_SIZES = """
    SELECT (SELECT reltuples::bigint FROM pg_class WHERE relname = 'backups') AS rows,
           pg_table_size('backups') AS table_bytes,
           pg_relation_size('backups_pkey') AS backups_pkey, pg_relation_size('backups_page') AS backups_page,
           pg_relation_size('backups_cluster') AS backups_cluster"""


def processor() -> str:
    """Return the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def processors() -> int:
    """Return the number of processors that this process can use."""
    return len(os.sched_getaffinity(0))


def sizes(url: str) -> dict[str, int]:
    """Return the number of rows of a catalog, and the bytes of its table and indexes."""
    return dict(asyncio.run(_row(url, _SIZES)))


def blocks_read(url: str) -> int:
    """Return the number of blocks of table and indexes that PostgreSQL has read into its buffers, from disk or the kernel's cache.

    Wait until all other backends have exited, because most of their statistics are written then.
    """
    others = """SELECT count(*) AS count FROM pg_stat_activity
        WHERE datname = current_database() AND backend_type = 'client backend' AND pid != pg_backend_pid()"""
    while asyncio.run(_row(url, others))["count"]:
        time.sleep(0.05)
    query = "SELECT sum(heap_blks_read + idx_blks_read)::bigint AS blocks FROM pg_statio_user_tables WHERE relname = 'backups'"
    return int(asyncio.run(_row(url, query))["blocks"])


async def _row(url: str, query: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchrow(query)
    finally:
        await connection.close()


def plain(value: Any) -> Any:
    """Return a value that JSON can represent: named tuples as objects, and numbers rounded."""
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


def median(measures: list[Any], field: str) -> float:
    """Return the median of a field."""
    return float(statistics.median(getattr(measure, field) for measure in measures))


def tables(results: dict[str, Any]) -> str:
    """Return all results as Markdown."""
    options = results["options"]
    parts = [f"{results['machine']}, CPython {results['python']}; median of {options['rounds']} rounds of {options['seconds']} s each.\n"]
    if calls := results.get("calls"):
        parts += [_calls(calls), _ratios(calls), _interceptor(calls)]
    if depth := results.get("depth"):
        parts.append(_depth(depth))
    parts.append(_facts(results))
    if scale := results.get("scale"):
        parts += [_calls(scale), _cold(results["cold"]), _sizes(results["sizes"])]
    return "\n".join(part for part in parts if part)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _calls(calls: dict[str, Any]) -> str:
    rows = [
        [case, system, f"{median(m, 'calls_s'):,.0f}", f"{median(m, 'p50_ms'):.2f}", f"{median(m, 'p99_ms'):.2f}",
         f"{median(m, 'server_us'):,.0f}", f"{median(m, 'postgres_us'):,.0f}"]
        for case, systems in calls.items() for system, m in systems.items()
    ]  # fmt: skip
    return _table(["case", "", "calls/s", "p50 ms", "p99 ms", "server, CPU µs per call", "PostgreSQL, CPU µs per call"], rows)


def _ratios(calls: dict[str, Any]) -> str:
    peers = [name for name in next(iter(calls.values())) if name not in (_SERVICE, "no interceptor", "no log")]
    rows = [[case, *(_multiple(systems[_SERVICE], systems[peer]) for peer in peers)] for case, systems in calls.items()]
    return (
        "\nCalls per second of the service, divided by those of each peer "
        "(in brackets: the same ratio for calls per second of CPU time):\n\n" + _table(["", *(f"÷ {peer}" for peer in peers)], rows)
    )


def _multiple(ours: list[Any], theirs: list[Any]) -> str:
    """Return the median of each round's ratio."""
    rounds = list(zip(ours, theirs, strict=True))
    rate = statistics.median(our.calls_s / their.calls_s for our, their in rounds)
    cpu = statistics.median((their.server_us + their.postgres_us) / (our.server_us + our.postgres_us) for our, their in rounds)
    return f"{rate:.2f} ({cpu:.2f})"


def _interceptor(calls: dict[str, Any]) -> str:
    """Return the CPU time of the interceptor and of its log line, as differences between systems."""
    rows = []
    for case, systems in calls.items():
        if "no interceptor" in systems and "no log" in systems:
            service, no_interceptor, no_log = (median(systems[name], "server_us") for name in (_SERVICE, "no interceptor", "no log"))
            rows.append([case, f"{service - no_interceptor:.0f}", f"{service - no_log:.0f}"])
    return _table(["", "interceptor, CPU µs per call", "of which the log line"], rows) if rows else ""


def _depth(depth: dict[str, Any]) -> str:
    rows = [
        [page, system, f"{median(m, 'p50_ms'):.2f}", f"{median(m, 'server_us'):,.0f}", f"{median(m, 'postgres_us'):,.0f}"]
        for page, systems in depth.items() for system, m in systems.items()
    ]  # fmt: skip
    return _table(["one folder, pages of 100", "", "p50 ms", "server, CPU µs per call", "PostgreSQL, CPU µs per call"], rows)


def _facts(results: dict[str, Any]) -> str:
    lines = []
    if (seconds := results.get("start_to_ready_s")) is not None:
        lines.append(f"- Start to ready: {seconds:.2f} s.")
    if pages := results.get("concurrent_pages"):
        lines.append(
            f"- 64 concurrent Lists of 1000: at most {pages['memory_max_mb']:.0f} MB resident; p99 {pages['list_p99_ms']:.0f} ms; "
            f"a Get next to them: p50 {pages['get_p50_ms']:.0f} ms, p99 {pages['get_p99_ms']:.0f} ms; "
            f"in a separate run, the event loop was blocked for {pages['blocked_p99_ms']:.1f} ms (p99), "
            f"at most {pages['blocked_max_ms']:.1f} ms."
        )
    if imported := results.get("import"):
        first, unchanged = imported["first"], imported["unchanged"]
        lines.append(
            f"- Import of {imported['entries']:,} entries: {first['seconds']:.0f} s, {first['memory_max_mb']:.0f} MB; "
            f"unchanged {unchanged['seconds']:.0f} s, {unchanged['memory_max_mb']:.0f} MB."
        )
    return "\n".join(lines) + "\n" if lines else ""


def _cold(cold: list[dict[str, Any]]) -> str:
    rows = [
        [f"{measured['backups']:,}", case.split(",")[0], f"{values['calls']:,}", f"{values['blocks_read'] / values['calls']:.2f}",
         f"{values['p99_ms']:.1f}"]
        for measured in cold for case, values in measured.items() if case != "backups"
    ]  # fmt: skip
    return _table(["empty buffers, backups", "", "calls", "blocks read per call", "p99 ms"], rows)


def _sizes(catalogs: list[dict[str, int]]) -> str:
    header = list(catalogs[0])
    return _table(["backups", *(f"{name}, bytes per row" for name in header[1:])], [
        [f"{catalog['rows']:,}", *(f"{catalog[name] / max(catalog['rows'], 1):.0f}" for name in header[1:])] for catalog in catalogs
    ])  # fmt: skip


def plot(results: dict[str, Any], file: Path) -> bool:
    """Plot calls per second and CPU per call of each system. Return False if matplotlib is not installed."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return False
    cases = {name: systems for name, systems in results["calls"].items() if name.endswith("s")}
    figure, axes = pyplot.subplots(2, len(cases), figsize=(12, 5.5), layout="constrained")
    for (above, below), (case, systems) in zip(axes.T, cases.items(), strict=True):
        plotted = {name: measures for name, measures in systems.items() if name not in ("no interceptor", "no log")}
        names = list(plotted)
        colours = ["#1b7f5c" if name == _SERVICE else "#9aa5b1" for name in names]
        rates = [median(measures, "calls_s") for measures in plotted.values()]
        above.bar_label(above.barh(names, rates, color=colours), fmt="{:,.0f}", padding=3, fontsize=8)
        above.set(title=case.split(",")[0], xlabel="calls per second, 8 connections")
        server, postgres = ([median(measures, field) for measures in plotted.values()] for field in ("server_us", "postgres_us"))
        below.barh(names, server, color=colours)
        both = [one + other for one, other in zip(server, postgres, strict=True)]
        stacked = below.barh(names, postgres, left=server, color="#33658a")
        below.bar_label(stacked, labels=[f"{cpu_us:,.0f}" for cpu_us in both], padding=3, fontsize=8)
        below.set(xlabel="CPU µs per call (PostgreSQL: blue)")
        for axis, values in ((above, rates), (below, both)):
            axis.invert_yaxis()
            axis.set_xlim(right=max(values) * 1.25)
            axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return True
