"""The steps of every call, in `Interceptor._run_steps`, and its outcome, in `Interceptor._wrap`. docs/architecture.md lists the steps.

Handlers are wrapped so that error_status.py alone decides which errors clients receive. By default, gRPC decodes a request before it calls
the handler, and returns its own texts for errors. Therefore wrapped handlers receive and return bytes.

Wrapped handlers also read the request. By default, gRPC calls the handler of a unary method only when the whole request has arrived, and
waits for it without a limit.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode
from grpc.aio import ServicerContext

from service import pb
from service.api.admission import STREAM_COST, Admission, IncompleteRequests, cost_of
from service.api.auth.authentication import ANONYMOUS, NOBODY, Authenticator, current_caller, set_current_caller
from service.api.auth.client_names import ANY_NAME, ClientNames
from service.api.client_address import ClientAddresses, set_current_client
from service.api.error_status import INTERNAL, status_of, trailers
from service.api.request_id import REQUEST_ID_KEY, new_request_id, request_id_of
from service.api.running_call import RunningCall
from service.errors import CallInterrupted, ShuttingDown, Unauthenticated, UndecodableRequest
from service.observability.logs import Call, describe, event
from service.observability.metrics import MethodMetrics, Metrics

if TYPE_CHECKING:  # imported only if traces are configured
    from service.observability.tracing import Tracing

_CORE_REJECTION_S = 0.01  # within this time, gRPC core cancels a call whose message is too large

_LOG_LEVELS = {StatusCode.INTERNAL: "error", StatusCode.UNAVAILABLE: "warning"}

_HEALTH = "/grpc.health.v1.Health/"
_DISCOVERY = f"/{pb.API_ENDPOINT_SERVICE}/"

_Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
_Context = ServicerContext[Any, Any]
_Wrapped: TypeAlias = Callable[[Any, _Context], Coroutine[Any, Any, Any]]
_RpcMethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Decode: TypeAlias = Callable[[Any], Any]
_Behavior: TypeAlias = Callable[[Any, Any], Coroutine[Any, Any, Any]]
_Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_RpcMethodHandler | None]]"

# Of the current call. Cached: `context.invocation_metadata()` rebuilds the tuple on every call.
_metadata: ContextVar[_Metadata] = ContextVar("metadata", default=())


class _Method(NamedTuple):
    """A method with its handler and its rules."""

    name: str
    metrics: MethodMetrics
    decode: _Decode
    handle: _Behavior
    """Calls the method of the service."""
    cost: Callable[[Any], int]
    """Returns the cost of a request against the admission limit."""
    max_seconds: float | None
    """Time limit of the call; None for `Watch` of the health service, which has none."""
    is_admitted: bool
    """Health checks are not: an overloaded server is still healthy."""
    is_authenticated: bool
    """Health checks and discovery are not: clients call them before they have a token."""
    has_one_request: bool
    """True if the request is one message, which is read before the handler is called; False if it is a stream."""


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all services, health and reflection included."""

    def __init__(
        self,
        *,
        admission: Admission,
        incomplete: IncompleteRequests,
        authenticator: Authenticator,
        clients: ClientAddresses,
        metrics: Metrics,
        request_timeout: timedelta,
        client_names: ClientNames = ANY_NAME,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._admission = admission
        self.incomplete = incomplete
        self._authenticator, self._client_names = authenticator, client_names
        self._clients = clients
        self._metrics = metrics
        self._tracing = tracing
        self._request_timeout = request_timeout.total_seconds()
        self._handlers: dict[str, _RpcMethodHandler] = {}
        self.calls: set[asyncio.Task[Any]] = set()
        """Tasks of the calls whose responses have not been sent."""

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "_RpcMethodHandler | None":
        method = handler_call_details.method
        _metadata.set(handler_call_details.invocation_metadata or ())
        if (known := self._handlers.get(method)) is not None:
            return known
        try:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # gRPC returns UNIMPLEMENTED
            self._handlers[method] = self._wrap_handler(method, handler)
        except Exception as exc:
            return grpc.stream_unary_rpc_method_handler(_guarded(_raising(exc)))
        return self._handlers[method]

    async def finished(self, within: timedelta) -> None:
        """Wait for the calls that gRPC has cancelled, but whose handlers still run."""
        if self.calls:
            await asyncio.wait(self.calls, timeout=within.total_seconds())

    def _wrap_handler(self, name: str, handler: _RpcMethodHandler) -> _RpcMethodHandler:
        """Wrap a handler as one for a stream of requests, because gRPC lets such handlers read the requests."""
        decode, encode, timeout = _decoder(handler.request_deserializer), handler.response_serializer, self._request_timeout
        if handler.unary_unary:
            method = self._describe_method(name, kind="unary", decode=decode, handle=_encoded(handler.unary_unary), max_seconds=timeout)
            return grpc.stream_unary_rpc_method_handler(self._wrap(method))
        if handler.unary_stream:
            method = self._describe_method(
                name, kind="server_stream", decode=decode, handle=_written(handler.unary_stream), max_seconds=None
            )
            return grpc.stream_stream_rpc_method_handler(self._wrap(method), response_serializer=encode)
        assert handler.stream_stream, f"{name}: methods with a stream of requests and one response are not supported"
        method = self._describe_method(
            name, kind="bidi_stream", decode=_unchanged, handle=_written(handler.stream_stream), max_seconds=timeout
        )
        return grpc.stream_stream_rpc_method_handler(self._wrap(method), request_deserializer=decode, response_serializer=encode)

    def _describe_method(self, name: str, *, kind: str, decode: _Decode, handle: _Behavior, max_seconds: float | None) -> _Method:
        is_stream = kind == "bidi_stream"
        return _Method(
            name=name,
            metrics=self._metrics.of_method(name, kind=kind),
            decode=decode,
            handle=handle,
            cost=_cost_of_stream if is_stream else cost_of,
            max_seconds=max_seconds,
            is_admitted=not name.startswith(_HEALTH),
            is_authenticated=not name.startswith((_HEALTH, _DISCOVERY)),
            has_one_request=not is_stream,
        )

    def _wrap(self, method: _Method) -> _Wrapped:
        async def wrapped(requests: Any, context: _Context) -> Any:
            """Run the steps of a call, and log its outcome: answered, failed, interrupted or cancelled."""
            running = self._begin(method, context)
            try:
                response = await self._run_steps(method, running, requests, context)
                running.finish_handler()
            except asyncio.CancelledError as exc:
                error = running.finish_handler()
                if running.is_cancelled:
                    running.call.finish(StatusCode.CANCELLED.name)
                    raise
                return await _abort(running.call, error or CallInterrupted(), exc, context)
            except Exception as exc:
                running.finish_handler()
                if isinstance(exc, ShuttingDown):
                    await self._hold(running.call)
                return await _abort(running.call, exc, exc, context)
            running.call.finish(StatusCode.OK.name)
            return response

        return _guarded(wrapped)

    def _begin(self, method: _Method, context: _Context) -> RunningCall:
        metadata = _metadata.get()
        client = self._clients.client(context.peer(), metadata)
        level = "info" if method.is_admitted else "debug"  # load balancers and probes check the health every second
        call = Call(method.name, method.metrics, request_id=request_id_of(metadata), peer=client.address, level=level)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        return RunningCall(call, client.key, admission=self._admission, calls=self.calls, timeout=self._request_timeout)

    async def _run_steps(self, method: _Method, running: RunningCall, requests: Any, context: _Context) -> Any:
        """Run the steps of a call in order, and return its response. The error that a step raises determines the status."""
        running.limit_to(_allowed(context, self._request_timeout))
        if method.is_admitted:
            self._admission.arrive()
        request = await self._receive(context, running, method) if method.has_one_request else requests
        if method.is_authenticated:
            self._client_names.require(context)
        self._authenticate(method, running)
        self._begin_span(method, running.call)  # not earlier, so that clients with a bad token cannot create spans
        message = method.decode(request)
        running.call.folder = _folder(message)
        if method.is_admitted:
            running.admit(method.cost(message))
        return await method.handle(message, context)

    async def _receive(self, context: _Context, running: RunningCall, method: _Method) -> bytes:
        """Return the one message of a request, as bytes.

        Raises:
            UndecodableRequest: the client ended its request without a complete message.
        """
        number = self.incomplete.add(running.interrupt)
        try:
            request: Any = await context.read()
        finally:
            self.incomplete.remove(number)
        if request is grpc.aio.EOF:
            await asyncio.sleep(_CORE_REJECTION_S)  # if the message was too large, gRPC core answers now and cancels this call
            raise UndecodableRequest
        if method.max_seconds is None:  # the request has arrived: from now on, only the client's deadline limits the call
            running.limit_to(_allowed(context, None))
        return bytes(request)

    def _authenticate(self, method: _Method, running: RunningCall) -> None:
        """Find the caller by the token, and the client that limits count for."""
        if method.is_authenticated:
            caller = self._authenticator.authenticate(_metadata.get())
            set_current_caller(caller)
            if caller.subject:
                running.call.caller = caller.subject
                running.client = f"subject {caller.subject}"
        else:
            running.client = "unauthenticated"  # counted as one client, so that together they get at most half of the limit
        set_current_client(running.client)

    def _begin_span(self, method: _Method, call: Call) -> None:
        if self._tracing is not None and method.is_admitted:
            call.span = self._tracing.call(
                method.name, _metadata.get(), request_id=call.request_id, seconds=call.seconds, is_authenticated=method.is_authenticated
            )

    async def _hold(self, call: Call) -> None:
        try:
            await self._admission.hold()
        except asyncio.CancelledError:  # the client has disconnected
            call.finish(StatusCode.CANCELLED.name)
            raise


def _guarded(handle: _Wrapped) -> _Wrapped:
    """Outermost guard: an error in the interceptor itself must not reach the client as text."""

    async def guarded(request: Any, context: _Context) -> Any:
        try:
            return await handle(request, context)
        except Exception as exc:
            request_id = new_request_id()
            event("call", level="error", code=INTERNAL.code.name, request_id=request_id, error=describe(exc))
            await context.abort(INTERNAL.code, INTERNAL.text, trailers(INTERNAL, exc, request_id))

    return guarded


def _raising(exc: Exception) -> _Wrapped:
    async def raising(request: Any, context: _Context) -> Any:
        raise exc

    return raising


def _encoded(handle: Callable[..., Any]) -> _Behavior:
    """Return a handler whose response is encoded."""

    async def handled(request: Any, context: _Context) -> bytes:
        response: Message | bytes = await handle(request, context)
        return response if isinstance(response, bytes) else response.SerializeToString()

    return handled


def _written(handle: Callable[..., Any]) -> _Behavior:
    """Return a handler that writes its responses to the stream, even if `handle` is a generator of them."""

    async def handled(request: Any, context: _Context) -> None:
        responses = handle(request, context)
        if not inspect.isasyncgen(responses):
            await responses
            return
        async for response in responses:
            await context.write(response)

    return handled


def _folder(message: Any) -> str:
    """Return the requested folder for the log. It is empty without a valid token, so that such clients cannot fill the log."""
    return "" if current_caller() in (ANONYMOUS, NOBODY) else getattr(message, "folder_id", "")


def _allowed(context: _Context, max_seconds: float | None) -> float | None:
    """Return the seconds until the client's deadline, at most `max_seconds`; None if there is no limit."""
    remaining = context.time_remaining()
    return max_seconds if remaining is None or (max_seconds is not None and max_seconds < remaining) else remaining


async def _abort(call: Call, error: Exception, cause: BaseException, context: _Context) -> None:
    """Abort a call with the status of an error. No initial metadata is sent, because clients do not retry after they have received it."""
    status = status_of(error)
    level = _LOG_LEVELS.get(status.code)
    if isinstance(error, Unauthenticated):
        call.rejection = error.reason
    call.finish(status.code.name, level=level, error=cause if level else None)
    try:
        await context.abort(status.code, status.text, trailers(status, error, call.request_id))
    except grpc.aio.AbortError as aborted:
        # gRPC keeps the error in a reference cycle until the next garbage collection. Drop our frames, which hold the request.
        aborted.__traceback__ = aborted.__context__ = None
    except grpc.aio.InternalError:  # the call is already over: its client has disconnected, or its deadline has passed
        raise asyncio.CancelledError from None


def _unchanged(request: Any) -> Any:
    return request


def _cost_of_stream(requests: Any) -> int:
    return STREAM_COST


def _decoder(deserialize: Callable[[bytes], Any] | None) -> _Decode:
    """Return a function that decodes a request, or raises `UndecodableRequest`."""
    assert deserialize

    def decode(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            raise UndecodableRequest from None

    return decode
