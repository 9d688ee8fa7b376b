"""Compare the service with its peers over one catalog, in one run. bench/README.md describes the method."""

import argparse
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from bench import report
from bench.interpreter import version
from bench.measurements import Bench
from bench.systems import PEERS

_ROOT = Path(__file__).parents[1]
_KINDS = ("calls", "scale", "instructions")


def _peers(text: str) -> list[str]:
    names = [name.replace("go-", "go ", 1) for name in text.split(",") if name]
    if unknown := sorted(set(names) - set(PEERS)):
        raise argparse.ArgumentTypeError(f"unknown peers: {', '.join(unknown)}")
    return names


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "kind", nargs="?", choices=_KINDS, default="calls",
        help="calls: the service and its peers; scale: catalogs of several sizes; instructions: of each call, counted by callgrind",
    )  # fmt: skip
    parser.add_argument("--backups", type=int, default=1_000_000, help="backups in 100 folders; one more folder has the same number")
    parser.add_argument("--peers", type=_peers, default=list(PEERS), help="separated by commas, such as constant,go-pass-through")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; results are medians")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of each case")
    parser.add_argument("--imports", type=int, default=1_000_000, help="entries of the imported listing; 0 for no import")
    parser.add_argument("--sizes", type=_sizes, default=[10_000, 10_000_000], help="backups of each catalog of `scale`")
    parser.add_argument("--data", type=Path, default=_ROOT / ".data" / "bench", help="folder of PostgreSQL and logs; catalogs are kept")
    parser.add_argument("--output", type=Path, default=_ROOT, help="folder whose README.md, docs/ and bench/results/ are updated")
    options = parser.parse_args()
    if options.kind != "calls" and not (options.output / report.CALLS_FILE).exists():
        parser.error(f"{options.output / report.CALLS_FILE} is missing: run `calls` with the same --output first")
    return options


def _conditions(options: argparse.Namespace) -> dict[str, str | float]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "interpreter": version(),
        "machine": f"{names[0] if names else 'unknown processor'}, {len(os.sched_getaffinity(0))} processors",
        "rounds": options.rounds,
        "seconds": options.seconds,
    }


def main() -> None:
    """Run the measurements, print the tables, and write the results and the documents that show them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops all child processes
    options = _options()
    options.data.mkdir(parents=True, exist_ok=True)
    print(f"Running on {version()}: {sys.executable}", file=sys.stderr, flush=True)
    results = getattr(Bench(options), options.kind)()
    file = (options.output / report.CALLS_FILE).with_stem(options.kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(_conditions(options) | results, indent=1) + "\n")
    report.update_documents(options.output)
    print(report.tables(report.read(options.output)))


if __name__ == "__main__":
    main()
