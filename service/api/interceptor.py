"""The steps of every call, in order: observe, deadline, receive, authenticate, decode, admit, handler, status.

gRPC decodes a request before a handler runs, and answers errors of either with texts of its own. So the handlers that this interceptor
returns read and return bytes, and only the service's own table decides what a client gets. Requests of unary methods are read here as
well: gRPC would wait without a limit for a request that is sent half, and it would not call a handler before.
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
from service.api.admission import STREAM_COST, Admission, IncompleteRequests, cost_of
from service.api.authentication import ANYBODY, NOBODY, Authenticator, current_caller, set_current_caller
from service.api.client_address import ClientAddresses
from service.api.client_names import ANY_NAME, ClientNames
from service.api.error_status import INTERNAL, REQUEST_ID_KEY, status_of, trailers
from service.api.rpc_task import RpcTask
from service.errors import CallInterrupted, DeadlineExceeded, ShuttingDown, Unauthenticated, UndecodableRequest
from service.observability.logs import Call, describe, event
from service.observability.metrics import MethodMetrics, Metrics

if TYPE_CHECKING:  # imported only if traces are configured
    from service.observability.tracing import Tracing

_LEAST_S = 0.001  # calls with less time left than this are rejected before any work

_CORE_ANSWER_S = 0.01  # until gRPC core's own answer to a message that is too large has ended the call

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,100}")
_LEVELS = {StatusCode.INTERNAL: "error", StatusCode.UNAVAILABLE: "warning"}

_REQUEST_ID_KEYS = ("x-client-request-id", REQUEST_ID_KEY)
_KINDS = {(False, False): "unary", (False, True): "server_stream", (True, True): "bidi_stream"}
_HEALTH = "/grpc.health.v1.Health/"
_DISCOVERY = f"/{pb.API_ENDPOINT_SERVICE}/"

_Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
_Context = ServicerContext[Any, Any]
_Wrapped: TypeAlias = Callable[[Any, _Context], Coroutine[Any, Any, Any]]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]"

# Of the current call. Cached: `context.invocation_metadata()` rebuilds the tuple on every call.
_metadata: ContextVar[_Metadata] = ContextVar("metadata", default=())


class _Method(NamedTuple):
    """How the calls of a method are handled."""

    name: str
    metrics: MethodMetrics
    decode: Callable[[Any], Any]
    handle: Callable[[Any, Any], Coroutine[Any, Any, Any]]
    cost: Callable[[Any], int]
    longest: float | None
    """Seconds; None for watching health, which lasts as long as the client wants."""
    is_admitted: bool
    """Health checks are not: an overloaded server is still healthy."""
    is_authenticated: bool
    """Health checks and discovery are not: clients call them before they have a token."""
    reads: bool
    """Whether the request is one message, which is read before the handler is called."""


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
        self._incomplete = incomplete
        self._authenticator, self._client_names = authenticator, client_names
        self._clients = clients
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
            return grpc.stream_unary_rpc_method_handler(_guarded(_raising(exc)))
        return self._handlers[method]

    async def finished(self, within: timedelta) -> None:
        """Wait for the calls that gRPC has cancelled, but whose handlers still run."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=within.total_seconds())

    def _handler(self, name: str, handler: _Handler) -> _Handler:
        """Wrap a handler. To gRPC, all of them read a stream of requests: then it leaves the reading to the handler."""
        decode, encode = _decoder(handler.request_deserializer), handler.response_serializer
        guards = (not name.startswith(_HEALTH), not name.startswith((_HEALTH, _DISCOVERY)))
        metrics = self._metrics.of_method(name, kind=_KINDS[handler.request_streaming, handler.response_streaming])
        timeout = self._request_timeout
        if handler.unary_unary:
            method = _Method(name, metrics, decode, _encoded(handler.unary_unary), cost_of, timeout, *guards, reads=True)
            return grpc.stream_unary_rpc_method_handler(self._wrap(method))
        if handler.unary_stream:
            method = _Method(name, metrics, decode, _written(handler.unary_stream), cost_of, None, *guards, reads=True)
            return grpc.stream_stream_rpc_method_handler(self._wrap(method), response_serializer=encode)
        assert handler.stream_stream, f"{name}: no service here takes a stream and gives one message"
        handle = _written(handler.stream_stream)
        method = _Method(name, metrics, _unchanged, handle, lambda requests: STREAM_COST, timeout, *guards, reads=False)
        return grpc.stream_stream_rpc_method_handler(self._wrap(method), request_deserializer=decode, response_serializer=encode)

    def _wrap(self, method: _Method) -> _Wrapped:
        async def wrapped(requests: Any, context: _Context) -> Any:
            metadata = _metadata.get()
            client = self._clients.client(context.peer(), metadata)
            call = Call(method.name, method.metrics, request_id=_request_id(metadata), peer=client.address)
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            running = _RunningCall(call, client.key, admission=self._admission, calls=self._calls, timeout=self._request_timeout)
            try:
                running.limit_to(_allowed(context, self._request_timeout))
                if method.is_admitted:
                    self._admission.arrive()
                request = await self._receive(context, running, method) if method.reads else requests
                if method.is_authenticated:
                    self._client_names.require(context)
                self._authenticate(method, metadata, running, call)
                message = method.decode(request)
                call.folder = _folder(message)
                if method.is_admitted:
                    running.admit(method.cost(message))
                response = await method.handle(message, context)
                running.answer()
            except asyncio.CancelledError as exc:
                error = running.answer()
                if running.rpc.task.cancelling():  # by gRPC: the client has gone, or the server's grace is over
                    call.ended(StatusCode.CANCELLED.name)
                    raise
                return await _answer(call, error or CallInterrupted(), exc, context)
            except Exception as exc:
                running.answer()
                if isinstance(exc, ShuttingDown):
                    await self._dismissed(call)
                return await _answer(call, exc, exc, context)
            else:
                call.ended(StatusCode.OK.name)
                return response

        return _guarded(wrapped)

    async def _receive(self, context: _Context, running: "_RunningCall", method: _Method) -> bytes:
        """Return the one message of a request, as bytes.

        Raises:
            UndecodableRequest: the client ended its request without a complete message.
        """
        number = self._incomplete.add(running.interrupt)
        try:
            request: Any = await context.read()
        finally:
            self._incomplete.remove(number)
        if request is grpc.aio.EOF:
            await asyncio.sleep(_CORE_ANSWER_S)  # gRPC core may have answered, and cancel this call: the message was too large
            raise UndecodableRequest
        if method.longest is None:
            running.limit_to(_allowed(context, None))
        return bytes(request)

    def _authenticate(self, method: _Method, metadata: _Metadata, running: "_RunningCall", call: Call) -> None:
        """Find the caller by the token, then begin the call's span: a client with a bad token cannot make spans."""
        if method.is_authenticated:
            caller = self._authenticator.authenticate(metadata)
            set_current_caller(caller)
            if caller.subject:
                call.caller = caller.subject
                running.client = f"subject {caller.subject}"
        else:
            running.client = "unauthenticated"  # all of them together, so that they leave half of the limit to the others
        if self._tracing is not None and method.is_admitted:
            call.span = self._tracing.call(
                method.name, metadata, request_id=call.request_id, seconds=call.seconds, is_authenticated=method.is_authenticated
            )

    async def _dismissed(self, call: Call) -> None:
        try:
            await self._admission.dismissed()
        except asyncio.CancelledError:  # the client has not waited
            call.ended(StatusCode.CANCELLED.name)
            raise


class _RunningCall:
    """A call until its answer has been sent: what it holds, and the time that is left for it.

    A timer of the loop interrupts it. `asyncio.timeout` does the same, but takes a tenth of the time of all steps.
    """

    __slots__ = ("_admission", "_answered_at", "_call", "_calls", "_cost", "_error", "_timeout", "_timer", "client", "rpc")

    def __init__(self, call: Call, client: str, *, admission: Admission, calls: set[asyncio.Task[Any]], timeout: float) -> None:
        self.client = client
        """Who the admission limit is shared between: the token's subject, or the address."""
        self.rpc = RpcTask()
        self._call, self._calls, self._admission, self._timeout = call, calls, admission, timeout
        self._error: Exception | None = None
        self._answered_at: float | None = None
        self._cost = 0
        self._timer: asyncio.TimerHandle | None = None
        calls.add(self.rpc.task)
        self.rpc.task.add_done_callback(self._sent)

    def limit_to(self, seconds: float | None) -> None:
        """Interrupt the call after so many seconds; None for no limit.

        Raises:
            DeadlineExceeded: there is no time left.
        """
        if seconds is not None and seconds < _LEAST_S:
            raise DeadlineExceeded
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.rpc.task.get_loop().call_later(seconds, self._expire)

    def admit(self, cost: int) -> None:
        """
        Raises:
            Overloaded: too much is in flight.
        """
        self._cost = self._admission.admit(self.client, cost)

    def interrupt(self, error: Exception) -> None:
        """Let the handler end with this error, unless it has ended."""
        if self._error is None and self._answered_at is None:
            self._error = error
            self.rpc.task.cancel()

    def answer(self) -> Exception | None:
        """Give the answer its own time to be sent, and return the error that has interrupted the handler, if any."""
        self._answered_at = self.rpc.task.get_loop().time()
        if self._error is not None:
            self.rpc.task.uncancel()
        if self._timer is None or self._error is not None:
            self.limit_to(self._timeout)
        return self._error

    def _expire(self) -> None:
        if self._answered_at is None:
            self.interrupt(DeadlineExceeded())
            return
        left = self._answered_at + self._timeout - self.rpc.task.get_loop().time()
        if left > 0:  # the timer was set before the answer was ready
            self._timer = self.rpc.task.get_loop().call_later(left, self._expire)
        else:
            self._call.not_read()
            self.rpc.cancel_rpc()

    def _sent(self, task: object) -> None:
        """Release what the call holds: its answer was sent, or cannot be sent any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._cost:
            self._admission.release(self.client, self._cost)
        self._calls.discard(self.rpc.task)


def _guarded(handle: _Wrapped) -> _Wrapped:
    """Outermost guard: an error in the interceptor itself must not reach the client as text."""

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


def _raising(exc: Exception) -> _Wrapped:
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


def _unchanged(request: Any) -> Any:
    return request


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
