"""The service, with a watch on its event loop; prints its port, and, once it was told to end, for how long the loop was held, in ms.

Measured is the CPU of the loop's thread between two looks that are a millisecond apart: what the machine gives to others meanwhile is not
held by anything here. A figure is up to a millisecond too high, and may span several turns of a busy loop.

    python -m bench.watched DATABASE_URL
"""

import asyncio
import json
import sys
import time

from service.observability import logs
from service.server import Server, serve
from service.settings import Settings

_held: list[float] = []


async def _watch() -> None:
    while True:
        began = time.thread_time()
        await asyncio.sleep(0.001)
        _held.append((time.thread_time() - began) * 1000)


def main() -> None:
    """Serves until SIGTERM."""
    logs.configure_logging(log_format="json", log_level="info")
    watches = []  # which keeps the task alive

    def started(server: Server) -> None:
        watches.append(asyncio.ensure_future(_watch()))
        print(server.address.port, flush=True)

    any_port = "127.0.0.1:0"
    serve(Settings.read(database_url=sys.argv[1], listen=any_port, metrics_listen=any_port, drain_delay="0"), started=started)
    _held.sort()
    json.dump({"held_p99_ms": _held[len(_held) * 99 // 100], "held_most_ms": _held[-1]}, sys.stdout)


if __name__ == "__main__":
    main()
