"""The service with a measurement of its event loop. Prints the port, and after SIGTERM how long the loop was blocked, in ms.

A blocked time is the CPU time of the loop's thread between two wake-ups that are a millisecond apart.
CPU time that the machine gives to other processes is not counted.
A blocked time is up to a millisecond too long, and can span several iterations of a busy loop.

    python -m bench.event_loop DATABASE_URL
"""

import asyncio
import json
import sys
import time

from service.composition import build_server
from service.observability import logs
from service.server import Server, serve
from service.settings import Settings

_blocked_ms: list[float] = []


async def _measure() -> None:
    while True:
        began = time.thread_time()
        await asyncio.sleep(0.001)
        _blocked_ms.append((time.thread_time() - began) * 1000)


def main() -> None:
    """Serve until SIGTERM."""
    logs.configure_logging(log_format="json", log_level="info")
    tasks = []  # keeps a reference to the task

    def started(server: Server) -> None:
        tasks.append(asyncio.ensure_future(_measure()))
        print(server.address.port, flush=True)

    any_port = "127.0.0.1:0"
    settings = Settings.read(database_url=sys.argv[1], listen=any_port, metrics_listen=any_port, drain_delay="0")
    serve(lambda: build_server(settings), started=started)
    _blocked_ms.sort()
    json.dump({"blocked_p99_ms": _blocked_ms[len(_blocked_ms) * 99 // 100], "blocked_max_ms": _blocked_ms[-1]}, sys.stdout)


if __name__ == "__main__":
    main()
