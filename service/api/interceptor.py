"""
What surrounds every call, in order, in one coroutine: observe, decode, deadline, handler, status.

gRPC decodes a request before a handler runs, and would answer its own texts to what goes wrong in either: so the handlers that this
interceptor returns take and give bytes, and nothing but its own table decides what a client is told.
"""

import asyncio
import inspect
import re
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode
from grpc.aio import ServicerContext

from service.api.status import REQUEST_ID_KEY, status_of, trailers
from service.errors import CallInterrupted, DeadlineExceeded, UndecodableRequest
from service.telemetry import Call

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,100}")
_LEVELS = {StatusCode.INTERNAL: "error", StatusCode.UNAVAILABLE: "warning"}

_Context = ServicerContext[Any, Any]
_Handle = Callable[[Any, _Context], Coroutine[Any, Any, Any]]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]"


class Interceptor(grpc.aio.ServerInterceptor):
    """Surrounds the handlers of all services, health and reflection too."""

    def __init__(self, *, request_timeout: timedelta) -> None:
        self._request_timeout = request_timeout.total_seconds()
        self._handlers: dict[str, _Handler] = {}
        self._calls: set[asyncio.Task[Any]] = set()

    async def intercept_service(self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails) -> "_Handler | None":
        method = handler_call_details.method
        if (known := self._handlers.get(method)) is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED
        self._handlers[method] = self._handler(method, handler)
        return self._handlers[method]

    async def finished(self, within: timedelta) -> None:
        """Waits for the calls that gRPC has given up on, but whose handlers still run."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=within.total_seconds())

    def _handler(self, method: str, handler: _Handler) -> _Handler:
        decode = _decoder(handler.request_deserializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._surround(method, _unary(handler.unary_unary, decode), self._request_timeout))
        # A stream lasts as long as its client wants.
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self._surround(method, _stream(handler.unary_stream, decode), None), response_serializer=handler.response_serializer
            )
        assert handler.stream_stream, f"{method}: no service here takes a stream and gives one message"
        return grpc.stream_stream_rpc_method_handler(
            self._surround(method, _stream(handler.stream_stream, lambda requests: requests), None),
            request_deserializer=decode,
            response_serializer=handler.response_serializer,
        )

    def _surround(self, method: str, handle: _Handle, longest: float | None) -> _Handle:
        async def surrounded(request: Any, context: _Context) -> Any:
            call = Call.begin(method, request_id=_request_id(context), peer=context.peer())
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            task = asyncio.current_task()
            assert task
            self._calls.add(task)
            deadline = asyncio.timeout(_allowed(context, longest))
            try:
                async with deadline:
                    response = await handle(request, context)
            except asyncio.CancelledError as exc:
                if task.cancelling():  # by gRPC: the client has gone, or the server's grace is over
                    call.ended(StatusCode.CANCELLED.name)
                    raise
                await _answer(call, CallInterrupted(), exc, context)
            except Exception as exc:
                error = DeadlineExceeded() if isinstance(exc, TimeoutError) and deadline.expired() else exc
                await _answer(call, error, exc, context)
            else:
                call.ended(StatusCode.OK.name)
                return response
            finally:
                self._calls.discard(task)

        return surrounded


def _unary(handle: Callable[..., Any], decode: Callable[[bytes], Any]) -> _Handle:
    async def handled(request: bytes, context: _Context) -> bytes:
        response: Message | bytes = await handle(decode(request), context)
        return response if isinstance(response, bytes) else response.SerializeToString()

    return handled


def _stream(handle: Callable[..., Any], decode: Callable[[Any], Any]) -> _Handle:
    async def handled(request: Any, context: _Context) -> None:
        responses = handle(decode(request), context)
        if not inspect.isasyncgen(responses):
            await responses  # it writes by itself
            return
        async for response in responses:
            await context.write(response)

    return handled


def _allowed(context: _Context, longest: float | None) -> float | None:
    """Seconds that the call may take: until the client's deadline, by the wall clock, but no longer than is allowed."""
    remaining = context.time_remaining()
    return longest if remaining is None or (longest is not None and longest < remaining) else remaining


async def _answer(call: Call, error: Exception, cause: BaseException, context: _Context) -> NoReturn:
    """An error without initial metadata: clients do not retry a call whose initial metadata they have seen."""
    status = status_of(error)
    level = _LEVELS.get(status.code, "info")
    call.ended(status.code.name, level=level, error=None if level == "info" else cause)
    await context.abort(status.code, status.text, trailers(status, error, call.request_id))


def _decoder(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    assert deserialize

    def decode(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            raise UndecodableRequest from None  # protobuf's text quotes types of ours, and nothing else

    return decode


def _request_id(context: _Context) -> str:
    """The client's where it is sane, else a new one."""
    given = {key: value for key, value in context.invocation_metadata() or () if key in ("x-client-request-id", "x-request-id")}
    for key in ("x-client-request-id", "x-request-id"):
        value = given.get(key)
        if isinstance(value, str) and _SANE_REQUEST_ID.fullmatch(value):
            return value
    return str(uuid.uuid4())
