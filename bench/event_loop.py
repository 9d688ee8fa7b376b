"""The service with a measurement of its event loop. The last line of the log states how long the loop was blocked, in ms.

A blocked time is the CPU time of the loop's thread between two wake-ups that are a millisecond apart.
CPU time that the machine gives to other processes is not counted.
A blocked time is up to a millisecond too long, and can span several iterations of a busy loop.
"""

import asyncio
import json
import time

from service.composition import build_server
from service.observability import logs
from service.server import Server, serve
from service.settings import Settings

_blocked_ms: list[float] = []
_tasks: list["asyncio.Task[None]"] = []  # keeps a reference to the task


async def _measure() -> None:
    while True:
        began = time.thread_time()
        await asyncio.sleep(0.001)
        _blocked_ms.append((time.thread_time() - began) * 1000)


def _started(server: Server) -> None:
    _tasks.append(asyncio.ensure_future(_measure()))


def main() -> None:
    """Serve until SIGTERM."""
    logs.configure_logging(log_format="json", log_level="info")
    settings = Settings.read()
    serve(lambda: build_server(settings), started=_started)
    _blocked_ms.sort()
    print(json.dumps({"blocked_p99_ms": _blocked_ms[len(_blocked_ms) * 99 // 100], "blocked_max_ms": _blocked_ms[-1]}))


if __name__ == "__main__":
    main()
