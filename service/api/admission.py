"""Limits on the work and memory that clients can use at the same time. Excess calls are rejected immediately, with a retry delay.

`Admission` limits the calls in flight, until their responses have been sent. `IncompleteRequests` limits the calls whose
request has not arrived. Health checks are not admitted: an overloaded server is still healthy.
"""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta

from service import pb
from service.backup import DEFAULT_PAGE_SIZE
from service.contract import PAGE_SIZE_MAX
from service.errors import Overloaded, ShuttingDown
from service.waiting import sleep_in_steps

FAIRNESS_WINDOW = timedelta(seconds=10)
"""Time after a call in which every other client is limited to half of the admission limit."""

MAX_INCOMPLETE_REQUESTS = 1000

STREAM_COST = 10
"""Cost of a stream. gRPC buffers up to 64 KiB of its responses."""

_HOLD_TIMEOUT_S = 5.0


def cost_of(request: object) -> int:
    """Return the cost of a request: 1, and 1 more for each hundred backups that a page may have."""
    if not isinstance(request, pb.ListBackupsRequest | pb.ListClusterBackupsRequest):
        return 1
    size = request.page_size or DEFAULT_PAGE_SIZE
    return 1 + min(max(size, 0), PAGE_SIZE_MAX) // 100


class Admission:
    """Counts the cost of the calls in flight against a limit, in all and for each client.

    A client alone can use the whole limit. While others call, a client gets at most half of it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        """Cost of the calls in flight."""
        self._in_flight_of: dict[str, int] = {}
        self._last_client, self._last_at, self._other_at = "", -math.inf, -math.inf
        self._open = True
        self._arrivals = 0
        self._released = asyncio.Event()

    def arrive(self) -> None:
        """Count the arrival of a call.

        Raises:
            ShuttingDown: the server rejects new calls.
        """
        self._arrivals += 1
        if not self._open:
            raise ShuttingDown

    def admit(self, client: str, cost: int) -> int:
        """Admit a call and return the cost to release once it is answered.

        Raises:
            Overloaded: the limit is reached, or this client's share of it while others call.
        """
        cost = min(cost, self.limit)  # an idle server admits any call
        held = self._in_flight_of.get(client, 0)
        is_over_share = held and held + cost > self.limit // 2  # a client without a call in flight can always make one
        if (self._others_call(client) and is_over_share) or self.in_flight + cost > self.limit:
            raise Overloaded
        self._in_flight_of[client] = held + cost
        self.in_flight += cost
        return cost

    def _others_call(self, client: str) -> bool:
        """Record a call, and return True if another client has called within the window. Rejected calls count."""
        now = time.monotonic()
        if client != self._last_client:
            self._last_client, self._other_at = client, self._last_at
        self._last_at = now
        return now - self._other_at <= FAIRNESS_WINDOW.total_seconds()

    def release(self, client: str, cost: int) -> None:
        """Release the cost of a call whose response has been sent or can no longer be sent."""
        self.in_flight -= cost
        left = self._in_flight_of[client] - cost
        if left:
            self._in_flight_of[client] = left
        else:
            del self._in_flight_of[client]

    def reject_new_calls(self) -> None:
        """Reject calls that arrive from now on, because of shutdown."""
        self._open = False

    async def idle(self, window: timedelta, *, timeout: timedelta) -> None:
        """Wait until no call has arrived for `window`, for at most `timeout`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout.total_seconds()):
                arrivals = -1
                while arrivals != self._arrivals:
                    arrivals = self._arrivals
                    await sleep_in_steps(window)

    def release_held_calls(self) -> None:
        """Let `hold` return for all calls."""
        self._released.set()

    async def hold(self) -> None:
        """Hold a call that is rejected because of shutdown until its client has received GOAWAY and uses another connection.

        If it were rejected immediately, a client that retries without pause would always have a call on its way when the listener
        stops. gRPC answers such calls with CANCELLED, which clients do not retry.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._released.wait(), _HOLD_TIMEOUT_S)


class IncompleteRequests:
    """Calls whose request has not arrived in full, oldest first.

    If there are too many, the oldest is rejected: a complete request is read within milliseconds, so it is never the oldest for long.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rejects: OrderedDict[int, Callable[[Exception], None]] = OrderedDict()
        self._number = 0

    def __len__(self) -> int:
        return len(self._rejects)

    def add(self, reject: Callable[[Exception], None]) -> int:
        """Add a call, which `reject` rejects, and return its number for `remove`."""
        if len(self._rejects) >= self._limit:
            _, reject_oldest = self._rejects.popitem(last=False)
            reject_oldest(Overloaded())
        self._number += 1
        self._rejects[self._number] = reject
        return self._number

    def remove(self, number: int) -> None:
        """Remove a call whose request has arrived, or that has ended."""
        self._rejects.pop(number, None)
