"""The server of each peer in Python: plain grpc.aio, without interceptors, logs or metrics."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import uvloop

from service import pb


def run(build: Callable[[str], Awaitable[Any]], *, raw: bool = False, loop: Any = uvloop) -> None:
    """Print the address, and serve until the process is killed.

    Args:
        build: returns the servicer for the URL of PostgreSQL, which is that of BACKUPS_DATABASE_URL.
        raw: the servicer's methods receive and return bytes.
        loop: `uvloop` or `asyncio`.
    """
    loop.run(_serve(build, raw=raw))


async def _serve(build: Callable[[str], Awaitable[Any]], *, raw: bool) -> None:
    servicer = await build(os.environ["BACKUPS_DATABASE_URL"])
    server = grpc.aio.server()
    if raw:
        handlers = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in ("Get", "List")}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(pb.BACKUP_SERVICE, handlers),))
    else:
        pb.add_BackupServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"event": "listening", "address": f"127.0.0.1:{port}"}), flush=True)
    await asyncio.Event().wait()
