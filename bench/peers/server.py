"""The server of each peer in Python: plain grpc.aio, without interceptors, logs or metrics."""

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any

import grpc
import uvloop

from service import pb


def run(build: Callable[[str], Any], *, raw: bool = False, loop: Any = uvloop) -> None:
    """Print the port, and serve until the process is killed.

    Args:
        build: returns the servicer for the URL of PostgreSQL, or a coroutine that does.
        raw: the servicer's methods receive and return bytes.
        loop: `uvloop` or `asyncio`.
    """
    loop.run(_serve(build, raw=raw))


async def _serve(build: Callable[[str], Any], *, raw: bool) -> None:
    built = build(sys.argv[1])
    servicer = await built if inspect.isawaitable(built) else built
    server = grpc.aio.server()
    if raw:
        handlers = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in ("Get", "List")}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(pb.BACKUP_SERVICE, handlers),))
    else:
        pb.add_BackupServiceServicer_to_server(servicer, server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.Event().wait()
