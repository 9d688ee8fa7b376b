"""Tables, JSON and the plot of a run."""

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
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "processor unknown"


def processors() -> int:
    return len(os.sched_getaffinity(0))


def sizes(url: str) -> dict[str, int]:
    """Rows and bytes of a catalog's table and indexes."""
    return dict(asyncio.run(_row(url, _SIZES)))


def blocks_read(url: str) -> int:
    """Blocks that PostgreSQL has read into its buffers, from disk or from the kernel's cache, for the catalog's table and indexes.

    Waits until nobody else is connected: a backend tells most of its figures when it ends.
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
    """Named tuples as objects, for JSON; figures rounded."""
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {key: plain(held) for key, held in value.items()}
    if isinstance(value, list):
        return [plain(held) for held in value]
    return round(value, 3) if isinstance(value, float) else value


def median(measures: list[Any], field: str) -> float:
    return float(statistics.median(getattr(measure, field) for measure in measures))


def tables(results: dict[str, Any]) -> str:
    """Everything measured, as Markdown."""
    options = results["options"]
    parts = [f"{results['machine']}, CPython {results['python']}; median of {options['rounds']} rounds of {options['seconds']} s each.\n"]
    if calls := results.get("calls"):
        parts += [_calls(calls), _ratios(calls), _surround(calls)]
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
    return _table(["case", "", "calls/s", "p50 ms", "p99 ms", "server, CPU µs a call", "PostgreSQL, CPU µs a call"], rows)


def _ratios(calls: dict[str, Any]) -> str:
    peers = [name for name in next(iter(calls.values())) if name not in (_SERVICE, "bare", "quiet")]
    rows = [[case, *(_multiple(systems[_SERVICE], systems[peer]) for peer in peers)] for case, systems in calls.items()]
    return "\nThe service's calls a second as a multiple of each peer's (in brackets, of its calls for each second of CPU):\n\n" + _table(
        ["", *(f"of {peer}" for peer in peers)], rows
    )


def _multiple(ours: list[Any], theirs: list[Any]) -> str:
    """Of each round; the median of those."""
    rounds = list(zip(ours, theirs, strict=True))
    rate = statistics.median(our.calls_s / their.calls_s for our, their in rounds)
    cpu = statistics.median((their.server_us + their.postgres_us) / (our.server_us + our.postgres_us) for our, their in rounds)
    return f"{rate:.2f} ({cpu:.2f})"


def _surround(calls: dict[str, Any]) -> str:
    """What surrounds a call, and its line of the log: differences of CPU."""
    rows = []
    for case, systems in calls.items():
        if "bare" in systems and "quiet" in systems:
            whole, bare, quiet = (median(systems[name], "server_us") for name in (_SERVICE, "bare", "quiet"))
            rows.append([case, f"{whole - bare:.0f}", f"{whole - quiet:.0f}"])
    return _table(["", "surround, CPU µs a call", "of which the line of the log"], rows) if rows else ""


def _depth(depth: dict[str, Any]) -> str:
    rows = [
        [page, system, f"{median(m, 'p50_ms'):.2f}", f"{median(m, 'server_us'):,.0f}", f"{median(m, 'postgres_us'):,.0f}"]
        for page, systems in depth.items() for system, m in systems.items()
    ]  # fmt: skip
    return _table(["one folder, pages of 100", "", "p50 ms", "server, CPU µs a call", "PostgreSQL, CPU µs a call"], rows)


def _facts(results: dict[str, Any]) -> str:
    lines = []
    if (seconds := results.get("start_to_ready_s")) is not None:
        lines.append(f"- Start to ready: {seconds:.2f} s.")
    if crowd := results.get("crowd"):
        lines.append(
            f"- 64 Lists of 1000 at once: {crowd['memory_most_mb']:.0f} MB resident at most; p99 {crowd['list_p99_ms']:.0f} ms; "
            f"a Get beside them {crowd['get_p50_ms']:.0f} ms, p99 {crowd['get_p99_ms']:.0f} ms; "
            f"in a run of its own, the event loop held for {crowd['held_p99_ms']:.1f} ms (p99), {crowd['held_most_ms']:.1f} at most."
        )
    if imported := results.get("import"):
        first, again = imported["first"], imported["unchanged"]
        lines.append(
            f"- Import of {imported['entries']:,} entries: {first['seconds']:.0f} s, {first['memory_most_mb']:.0f} MB; "
            f"unchanged {again['seconds']:.0f} s, {again['memory_most_mb']:.0f} MB."
        )
    return "\n".join(lines) + "\n" if lines else ""


def _cold(cold: list[dict[str, Any]]) -> str:
    rows = [
        [f"{found['backups']:,}", case.split(",")[0], f"{values['calls']:,}", f"{values['blocks_read'] / values['calls']:.2f}",
         f"{values['p99_ms']:.1f}"]
        for found in cold for case, values in found.items() if case != "backups"
    ]  # fmt: skip
    return _table(["cold, backups", "", "calls", "blocks read a call", "p99 ms"], rows)


def _sizes(catalogs: list[dict[str, int]]) -> str:
    header = list(catalogs[0])
    return _table(["backups", *(f"{name}, B a row" for name in header[1:])], [
        [f"{catalog['rows']:,}", *(f"{catalog[name] / max(catalog['rows'], 1):.0f}" for name in header[1:])] for catalog in catalogs
    ])  # fmt: skip


def plot(results: dict[str, Any], file: Path) -> bool:
    """Calls a second, and CPU a call, of every system; False where matplotlib is not installed."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return False
    cases = {name: systems for name, systems in results["calls"].items() if name.endswith("s")}
    figure, axes = pyplot.subplots(2, len(cases), figsize=(12, 5.5), layout="constrained")
    for (above, below), (case, systems) in zip(axes.T, cases.items(), strict=True):
        shown = {name: measures for name, measures in systems.items() if name not in ("bare", "quiet")}
        names = list(shown)
        colours = ["#1b7f5c" if name == _SERVICE else "#9aa5b1" for name in names]
        rates = [median(measures, "calls_s") for measures in shown.values()]
        above.bar_label(above.barh(names, rates, color=colours), fmt="{:,.0f}", padding=3, fontsize=8)
        above.set(title=case.split(",")[0], xlabel="calls a second, many connections")
        server, postgres = ([median(measures, field) for measures in shown.values()] for field in ("server_us", "postgres_us"))
        below.barh(names, server, color=colours)
        both = [one + other for one, other in zip(server, postgres, strict=True)]
        stacked = below.barh(names, postgres, left=server, color="#33658a")
        below.bar_label(stacked, labels=[f"{cpu_us:,.0f}" for cpu_us in both], padding=3, fontsize=8)
        below.set(xlabel="CPU µs a call: server, and PostgreSQL in blue")
        for axis, values in ((above, rates), (below, both)):
            axis.invert_yaxis()
            axis.set_xlim(right=max(values) * 1.25)
            axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return True
