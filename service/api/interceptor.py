"""What surrounds every call, in order, in one coroutine: observe, deadline, admit, authenticate, decode, weigh, handler, status.

gRPC decodes a request before a handler runs, and would answer its own texts to what goes wrong in either: so the handlers that this
interceptor returns take and give bytes, and nothing but its own table decides what a client is told.
"""

import asyncio
import inspect
import random
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode
from grpc.aio import ServicerContext

from service import pb
from service.api.admission import Admission
from service.api.authentication import ANYBODY, NOBODY, Authenticator, current_caller, set_current_caller
from service.api.client_names import ANY_NAME, ClientNames
from service.api.error_status import INTERNAL, REQUEST_ID_KEY, status_of, trailers
from service.errors import CallInterrupted, DeadlineExceeded, ShuttingDown, Unauthenticated, UndecodableRequest
from service.observability.logs import Call, describe, event
from service.observability.metrics import MethodMetrics, Metrics

if TYPE_CHECKING:  # imported only where traces are asked for
    from service.observability.tracing import CallSpan, Tracing

_LEAST_S = 0.001  # what no answer is quicker than

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,100}")
_LEVELS = {StatusCode.INTERNAL: "error", StatusCode.UNAVAILABLE: "warning"}

_REQUEST_ID_KEYS = ("x-client-request-id", REQUEST_ID_KEY)
_KINDS = {(False, False): "unary", (False, True): "server_stream", (True, True): "bidi_stream"}
_HEALTH = "/grpc.health.v1.Health/"
_DISCOVERY = f"/{pb.API_ENDPOINT_SERVICE}/"

_Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
_Context = ServicerContext[Any, Any]
_Surrounded: TypeAlias = Callable[[Any, _Context], Coroutine[Any, Any, Any]]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]"

_metadata: ContextVar[_Metadata] = ContextVar("metadata", default=())  # of the call: its context would make it anew


class _Method(NamedTuple):
    """What is done for the calls of a method."""

    name: str
    metrics: MethodMetrics
    decode: Callable[[Any], Any]
    handle: Callable[[Any, Any], Coroutine[Any, Any, Any]]
    longest: float | None
    """Seconds; to watch the health takes as long as the client wants."""
    is_admitted: bool
    """Health checks are not: a server that is busy is not ill."""
    is_authenticated: bool
    """Neither health checks are, nor discovery, which clients ask before they have a token."""


class Interceptor(grpc.aio.ServerInterceptor):
    """Surrounds the handlers of all services, health and reflection too."""

    def __init__(
        self,
        *,
        admission: Admission,
        authenticator: Authenticator,
        metrics: Metrics,
        request_timeout: timedelta,
        client_names: ClientNames = ANY_NAME,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._admission = admission
        self._authenticator, self._client_names = authenticator, client_names
        self._metrics = metrics
        self._tracing = tracing
        self._request_timeout = request_timeout.total_seconds()
        self._handlers: dict[str, _Handler] = {}
        self._calls: set[asyncio.Task[Any]] = set()

    async def intercept_service(self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails) -> "_Handler | None":
        method = handler_call_details.method
        _metadata.set(handler_call_details.invocation_metadata or ())
        if (known := self._handlers.get(method)) is not None:
            return known
        try:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # gRPC answers UNIMPLEMENTED
            self._handlers[method] = self._handler(method, handler)
        except Exception as exc:
            return grpc.unary_unary_rpc_method_handler(_guarded(_raising(exc)))
        return self._handlers[method]

    async def finished(self, within: timedelta) -> None:
        """Waits for the calls that gRPC has given up on, but whose handlers still run."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=within.total_seconds())

    def _handler(self, name: str, handler: _Handler) -> _Handler:
        decode, encode = _decoder(handler.request_deserializer), handler.response_serializer
        guards = (not name.startswith(_HEALTH), not name.startswith((_HEALTH, _DISCOVERY)))
        metrics = self._metrics.of_method(name, kind=_KINDS[handler.request_streaming, handler.response_streaming])
        if handler.unary_unary:
            method = _Method(name, metrics, decode, _encoded(handler.unary_unary), self._request_timeout, *guards)
            return grpc.unary_unary_rpc_method_handler(self._surround(method))
        if handler.unary_stream:
            method = _Method(name, metrics, decode, _written(handler.unary_stream), None, *guards)
            return grpc.unary_stream_rpc_method_handler(self._surround(method), response_serializer=encode)
        assert handler.stream_stream, f"{name}: no service here takes a stream and gives one message"
        method = _Method(name, metrics, lambda requests: requests, _written(handler.stream_stream), self._request_timeout, *guards)
        return grpc.stream_stream_rpc_method_handler(self._surround(method), request_deserializer=decode, response_serializer=encode)

    def _surround(self, method: _Method) -> _Surrounded:
        async def surrounded(request: Any, context: _Context) -> Any:
            metadata = _metadata.get()
            request_id = _request_id(metadata)
            span = self._span(method, metadata, request_id)
            call = Call(method.name, method.metrics, request_id=request_id, peer=context.peer(), span=span)
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            task = asyncio.current_task()
            assert task
            self._calls.add(task)
            allowed = _allowed(context, method.longest)
            deadline = _Deadline(task, allowed)
            weight = 0
            try:
                if allowed is not None and allowed < _LEAST_S:
                    raise DeadlineExceeded  # while it waited to be taken up: nothing is done for it
                if method.is_admitted:
                    weight = self._admission.admit()
                if method.is_authenticated:
                    self._client_names.require(context)
                    caller = self._authenticator.authenticate(metadata)  # before the request is looked at
                    set_current_caller(caller)
                    call.caller = caller.subject
                message = method.decode(request)
                call.folder = _folder(message)
                weight += self._admission.weigh(message)
                response = await method.handle(message, context)
                deadline.leave()
            except asyncio.CancelledError as exc:
                was_deadline = deadline.leave()
                if task.cancelling():  # by gRPC: the client has gone, or the server's grace is over
                    call.ended(StatusCode.CANCELLED.name)
                    raise
                return await _answer(call, DeadlineExceeded() if was_deadline else CallInterrupted(), exc, context)
            except Exception as exc:
                deadline.leave()
                if isinstance(exc, ShuttingDown):
                    await self._dismissed(call)
                return await _answer(call, exc, exc, context)
            else:
                call.ended(StatusCode.OK.name)
                return response
            finally:
                self._admission.release(weight)
                self._calls.discard(task)

        return _guarded(surrounded)

    async def _dismissed(self, call: Call) -> None:
        try:
            await self._admission.dismissed()
        except asyncio.CancelledError:  # the client has not waited
            call.ended(StatusCode.CANCELLED.name)
            raise

    def _span(self, method: _Method, metadata: _Metadata, request_id: str) -> "CallSpan | None":
        """Health checks are no news."""
        if self._tracing is None or not method.is_admitted:
            return None
        return self._tracing.call(method.name, metadata, request_id=request_id)


class _Deadline:
    """Cancels a call whose time is over. `asyncio.timeout` does the same, and takes a tenth of what surrounds a call."""

    __slots__ = ("_expired", "_task", "_timer")

    def __init__(self, task: asyncio.Task[Any], seconds: float | None) -> None:
        self._task, self._expired = task, False
        self._timer = None if seconds is None else task.get_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def leave(self) -> bool:
        """The call is over; whether it was ended here."""
        if self._timer is not None:
            self._timer.cancel()
        if self._expired:
            self._task.uncancel()
        return self._expired


def _guarded(handle: _Surrounded) -> _Surrounded:
    """The last door: where what surrounds a call fails itself, gRPC would answer with that error's text."""

    async def guarded(request: Any, context: _Context) -> Any:
        try:
            return await handle(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as exc:
            request_id = _new_request_id()
            event("call", level="error", code=INTERNAL.code.name, request_id=request_id, error=describe(exc))
            await context.abort(INTERNAL.code, INTERNAL.text, trailers(INTERNAL, exc, request_id))

    return guarded


def _raising(exc: Exception) -> _Surrounded:
    async def raising(request: Any, context: _Context) -> Any:
        raise exc

    return raising


def _encoded(handle: Callable[..., Any]) -> Callable[[Any, Any], Coroutine[Any, Any, Any]]:
    """A handler of one message: what it returns, if that is not encoded yet."""

    async def handled(request: Any, context: _Context) -> bytes:
        response: Message | bytes = await handle(request, context)
        return response if isinstance(response, bytes) else response.SerializeToString()

    return handled


def _written(handle: Callable[..., Any]) -> Callable[[Any, Any], Coroutine[Any, Any, Any]]:
    """A handler of a stream, whether it writes by itself or generates what to write."""

    async def handled(request: Any, context: _Context) -> None:
        responses = handle(request, context)
        if not inspect.isasyncgen(responses):
            await responses
            return
        async for response in responses:
            await context.write(response)

    return handled


def _folder(message: Any) -> str:
    """Return the folder that a client with a valid token requests; nothing for other clients, who could fill the log with texts."""
    return "" if current_caller() in (ANYBODY, NOBODY) else getattr(message, "folder_id", "")


def _allowed(context: _Context, longest: float | None) -> float | None:
    """Seconds that the call may take: until the client's deadline, by the wall clock, but no longer than is allowed."""
    remaining = context.time_remaining()
    return longest if remaining is None or (longest is not None and longest < remaining) else remaining


async def _answer(call: Call, error: Exception, cause: BaseException, context: _Context) -> None:
    """An error without initial metadata: clients do not retry a call whose initial metadata they have seen."""
    status = status_of(error)
    level = _LEVELS.get(status.code, "info")
    if isinstance(error, Unauthenticated):
        call.rejection = error.reason
    call.ended(status.code.name, level=level, error=None if level == "info" else cause)
    try:
        await context.abort(status.code, status.text, trailers(status, error, call.request_id))
    except grpc.aio.AbortError as aborted:
        # gRPC keeps it, in a cycle, until garbage is collected: without our frames, which hold the request. The status stands.
        aborted.__traceback__ = aborted.__context__ = None
    except grpc.aio.InternalError:  # the call was over before: its client has gone, or its deadline has passed
        raise asyncio.CancelledError from None


def _decoder(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    assert deserialize

    def decode(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            raise UndecodableRequest from None  # protobuf's text quotes types of ours, and nothing else

    return decode


def _request_id(metadata: _Metadata) -> str:
    """The client's where it is sane, else a new one."""
    given = {key: value for key, value in metadata if key in _REQUEST_ID_KEYS}
    for key in _REQUEST_ID_KEYS:
        value = given.get(key)
        if isinstance(value, str) and _SANE_REQUEST_ID.fullmatch(value):
            return value
    return _new_request_id()


def _new_request_id() -> str:
    """A UUID of version 4, whose randomness is no secret; uuid.uuid4 asks the kernel for it."""
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
