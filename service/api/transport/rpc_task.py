"""Cancellation of an RPC by the server, for responses that their client does not read.

grpc.aio has no API for it. It runs each RPC in two tasks: a child that runs the handler and then sends its response, and a parent that
waits for the client to cancel. Both hold a reference to the RPC. When both have ended, gRPC core resets the stream and drops the response
(`_schedule_rpc_coro` in grpcio's aio/server.pyx.pxi). A child has no reference to its parent, so the task factory here stores it.
"""

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any, TypeAlias

_Task: TypeAlias = asyncio.Task[Any]

PARENT_NAME = "rpc_task"
"""The name that grpc.aio gives to the parent."""

_creator: ContextVar[_Task | None] = ContextVar("creator", default=None)


def create_task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> _Task:
    """Create a task whose context contains the task that created it. For use as the task factory of a server's event loop."""
    _creator.set(asyncio.current_task(loop))  # the new task copies this context
    return asyncio.Task(coroutine, loop=loop, **options)


class RpcTask:
    """The task of the current RPC. To be created before the handler creates a task of its own."""

    __slots__ = ("_parent", "task")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task
        self.task: _Task = task
        """Runs the handler, then sends its response. Done when the response has been sent or can no longer be sent."""
        self._parent = _creator.get()

    def cancel_rpc(self) -> None:
        """Reset the stream of the RPC, and free the part of its response that gRPC still holds."""
        self.task.cancel()
        if self._parent is not None and self._parent.get_name() == PARENT_NAME:  # never the task that accepts calls
            self._parent.cancel()
