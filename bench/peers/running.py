"""How a peer in Python runs: a plain grpc.aio server, without interceptors, logs or metrics."""

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any

import grpc
import uvloop

from service import pb


def run(make: Callable[[str], Any], *, raw: bool = False, loop: Any = uvloop) -> None:
    """Serves until it is killed; prints its port.

    Args:
        make: gives the servicer of a PostgreSQL's URL, perhaps by a coroutine.
        raw: its handlers take and give bytes.
        loop: `uvloop` or `asyncio`.
    """
    loop.run(_serve(make, raw=raw))


async def _serve(make: Callable[[str], Any], *, raw: bool) -> None:
    made = make(sys.argv[1])
    servicer = await made if inspect.isawaitable(made) else made
    server = grpc.aio.server()
    if raw:
        handlers = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in ("Get", "List")}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(pb.BACKUP_SERVICE, handlers),))
    else:
        pb.add_BackupServiceServicer_to_server(servicer, server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.Event().wait()
