"""The gRPC server of a listener, which accepts several calls of a method at the same time.

grpc.aio requests one call of each method from gRPC core, and requests the next one when that has arrived. Each call then costs a thread
switch and several iterations of the event loop. With several requests outstanding, one iteration accepts all calls that have arrived.
docs/decisions/0011-concurrent-accept.md has the measurements and the risk: grpc.aio has no public API for this. If grpcio has changed one
of the private names that are used here, the server accepts calls as grpc.aio does.
"""

import asyncio
import contextlib
import inspect
import operator
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc

from service.api.transport.rpc_task import PARENT_NAME
from service.observability import logs

OUTSTANDING_REQUESTS = 16
"""Requests for calls of each method, about 2 KiB each. More are not faster."""

PRIVATE_NAMES: Mapping[str, tuple[str, ...] | None] = {
    "AioServer._make_request_call_future": ("self", "method_bytes"),
    "AioServer._request_registered_call": ("self", "method"),
    "AioServer.add_registered_method_handlers": ("self", "method_handlers"),
    "AioServer.is_running": ("self",),
    "_handle_rpc": ("method_name", "method_resolver", "interceptors", "rpc_state", "loop", "concurrency_exceeded"),
    "_schedule_rpc_coro": ("rpc_coro", "rpc_state", "loop", "method_name"),
    "_RequestCallError": None,
}
"""Names of `grpc._cython.cygrpc` that this module uses, with the names of their parameters; None if they cannot be read."""

# A missing module is found by `changed_name`, not here.
_cygrpc: Any = getattr(getattr(grpc, "_cython", None), "cygrpc", None)
_AioServer: Any = getattr(_cygrpc, "AioServer", object)


def new_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, Any]], *, accepts_concurrently: bool
) -> grpc.aio.Server:
    """Return a server that accepts several calls of a method at the same time, or grpc.aio's own if that is turned off or not supported."""
    if not (accepts_concurrently and _is_supported()):
        return grpc.aio.server(interceptors=interceptors, options=options)
    _cygrpc.AioServer = _ConcurrentServer  # grpc.aio.server() creates one
    try:
        return grpc.aio.server(interceptors=interceptors, options=options)
    finally:
        _cygrpc.AioServer = _AioServer


def _is_supported() -> bool:
    """Return True if grpcio has all private names. Otherwise, log the first one that has changed."""
    changed = changed_name()
    if changed is not None:
        problem = f"grpcio {grpc.__version__} has changed {changed}, so calls are accepted one at a time, at a higher cost"
        logs.event("no concurrent accept", level="warning", problem=problem)
    return changed is None


def changed_name() -> str | None:
    """Return the first private name that is missing or has other parameters; None if all are as expected."""
    for name, parameters in PRIVATE_NAMES.items():
        try:
            found = operator.attrgetter(name)(_cygrpc)
            if parameters is not None and tuple(inspect.signature(found).parameters) != parameters:
                return name
        except (AttributeError, TypeError, ValueError):  # missing, or without a signature
            return name
    return None


class _ConcurrentServer(_AioServer):  # type: ignore[misc]
    """A server of grpc.aio with another way to accept calls.

    In grpcio's aio/server.pyx.pxi, `_server_main_loop` requests one call of each method (`_make_request_call_future`), starts the call when
    it has arrived, and requests the next one. Here, several tasks for each method do the same (`_accept`), and the future that
    `_make_request_call_future` returns is done only when the server stops.
    """

    def __init__(self, loop: Any, thread_pool: Any, generic_handlers: Any, interceptors: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(loop, thread_pool, generic_handlers, interceptors, *args, **kwargs)
        self._handlers: dict[str, Any] = {}
        # Arguments of `_handle_rpc`, which passes the call and its handler to the interceptors.
        self._resolver = SimpleNamespace(resolve_handler=lambda details: self._handlers[details.method])
        self._call_interceptors = tuple(interceptors or ())
        self._calls: set[asyncio.Task[None]] = set()

    def add_registered_method_handlers(self, method_handlers: dict[str, Any]) -> None:
        super().add_registered_method_handlers(method_handlers)
        self._handlers |= method_handlers

    def _make_request_call_future(self, method_bytes: bytes | None) -> "asyncio.Future[Any]":
        if method_bytes is None:  # calls of methods that are not registered
            return super()._make_request_call_future(None)  # type: ignore[no-any-return]
        return asyncio.gather(*(self._accept(method_bytes) for _ in range(OUTSTANDING_REQUESTS)))

    async def _accept(self, method: bytes) -> NoReturn:
        """Accept calls of a method until the server stops. Then raise the error that grpc.aio's loop expects."""
        while self.is_running():
            with contextlib.suppress(_cygrpc._RequestCallError):
                self._start_call(method.decode(), await self._request_registered_call(method))
        raise _cygrpc._RequestCallError

    def _start_call(self, method: str, rpc: Any) -> None:
        """Start the tasks of a call. They own it: gRPC core cancels a call when nothing refers to it (rpc_task.py)."""
        loop = asyncio.get_running_loop()
        # Gets the handler from the interceptors (`Interceptor.intercept_service`) and calls it.
        handling = _cygrpc._handle_rpc(method, self._resolver, self._call_interceptors, rpc, loop, False)
        task = loop.create_task(_cygrpc._schedule_rpc_coro(handling, rpc, loop, method), name=PARENT_NAME)
        self._calls.add(task)  # the event loop has no reference of its own
        task.add_done_callback(self._calls.discard)
