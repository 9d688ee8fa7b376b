"""A call until its response has been sent: its deadline, and its share of the admission limit."""

import asyncio
from typing import Any

from service.api.admission import Admission
from service.api.transport.rpc_task import RpcTask
from service.errors import DeadlineExceeded
from service.observability.logs import Call

_LEAST_S = 0.001  # calls with less time left than this are rejected before any work


class RunningCall:
    """The task of a call, which a timer of the event loop interrupts at the deadline.

    `asyncio.timeout` would add a tenth to the CPU time of a call.
    """

    __slots__ = ("_admission", "_answered_at", "_calls", "_cost", "_error", "_timeout", "_timer", "call", "client", "rpc")

    def __init__(self, call: Call, client: str, *, admission: Admission, calls: set[asyncio.Task[Any]], timeout: float) -> None:
        """
        Args:
            client: the client before it is authenticated.
            calls: contains the task until the response has been sent.
            timeout: seconds that the client has to read the response.
        """
        self.client = client
        """Key by which the admission limit is shared: the token's subject, or the address."""
        self.rpc = RpcTask()
        self.call, self._calls, self._admission, self._timeout = call, calls, admission, timeout
        self._error: Exception | None = None
        self._answered_at: float | None = None
        self._cost = 0
        self._timer: asyncio.TimerHandle | None = None
        calls.add(self.rpc.task)
        self.rpc.task.add_done_callback(self._sent)

    @property
    def is_cancelled(self) -> bool:
        """True if gRPC cancels the call, and not this object: the client has disconnected, or the grace period is over."""
        return bool(self.rpc.task.cancelling())

    def limit_to(self, seconds: float | None) -> None:
        """Interrupt the call after this number of seconds; None for no limit.

        Raises:
            DeadlineExceeded: there is no time left.
        """
        if seconds is not None and seconds < _LEAST_S:
            raise DeadlineExceeded
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.rpc.task.get_loop().call_later(seconds, self._expire)

    def admit(self, cost: int) -> None:
        """Hold a cost of the admission limit until the response has been sent.

        Raises:
            Overloaded: the limit is reached, or this client's share of it.
        """
        self._cost = self._admission.admit(self.client, cost)

    def interrupt(self, error: Exception) -> None:
        """Interrupt the handler with this error, unless it has finished."""
        if self._error is None and self._answered_at is None:
            self._error = error
            self.rpc.task.cancel()

    def finish_handler(self) -> Exception | None:
        """Start the time for sending the response. Return the error that has interrupted the handler, or None."""
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
        if left > 0:  # it was set for the handler, and the client has more time to read the response
            self._timer = self.rpc.task.get_loop().call_later(left, self._expire)
        else:
            self.call.log_unread_response()
            self.rpc.cancel_rpc()

    def _sent(self, task: object) -> None:
        """Release the timer and the cost, because the response has been sent or can no longer be sent."""
        if self._timer is not None:
            self._timer.cancel()
        if self._cost:
            self._admission.release(self.client, self._cost)
        self._calls.discard(self.rpc.task)
