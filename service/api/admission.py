"""How much may be in flight at once: what is beyond is refused at once, and told when to come again.

Weighed in calls: a `Get` is one, a `List` one more for each hundred backups of its page. Health checks are not weighed: a server that is
busy is not ill.
"""

import asyncio
import contextlib
from datetime import timedelta

from service import pb
from service.backup import DEFAULT_PAGE_SIZE
from service.errors import Overloaded, ShuttingDown

_MAX_PAGE_SIZE = 1000

_QUIET_STEPS = 10
_LONGEST_WAIT_S = 5.0


class Admission:
    """Counts what is in flight against a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        """The weight of the calls that are being answered."""
        self._open = True
        self._arrivals = 0
        self._dismissed = asyncio.Event()

    def admit(self) -> int:
        """One call, weighing one until it is known to weigh more; gives what is to be released.

        Raises:
            Overloaded: as much as is allowed is in flight.
            ShuttingDown: the server refuses new calls.
        """
        self._arrivals += 1
        if not self._open:
            raise ShuttingDown
        return self._add(1)

    def weigh(self, request: object) -> int:
        """What a request weighs beyond one, as its fields say; gives what is to be released as well.

        Raises:
            Overloaded: there is no room for that much.
        """
        if not isinstance(request, pb.ListBackupsRequest):
            return 0
        size = request.page_size or DEFAULT_PAGE_SIZE
        weight = min(max(size, 0), _MAX_PAGE_SIZE) // 100
        return self._add(min(weight, self.limit - 1))  # an idle server has room for any

    def _add(self, weight: int) -> int:
        if self.in_flight + weight > self.limit:
            raise Overloaded
        self.in_flight += weight
        return weight

    def release(self, weight: int) -> None:
        """The call has been answered."""
        self.in_flight -= weight

    def close(self) -> None:
        """Refuses new calls from now on."""
        self._open = False

    async def quiet(self, window: timedelta, *, within: timedelta) -> None:
        """Waits until no call has come for this long; but not for ever.

        In many small steps: to a process that got no CPU, time has passed, but the calls that came meanwhile have not come yet.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within.total_seconds()):
                quiet_steps = 0
                while quiet_steps < _QUIET_STEPS:
                    arrivals = self._arrivals
                    await asyncio.sleep(window.total_seconds() / _QUIET_STEPS)
                    quiet_steps = quiet_steps + 1 if arrivals == self._arrivals else 0

    def dismiss(self) -> None:
        """Lets the refused calls go."""
        self._dismissed.set()

    async def dismissed(self) -> None:
        """Where a refused call waits until its client has been told to go elsewhere.

        Refused at once, a client that calls on and on would always have a call on its way when the listener stops, and gRPC answers
        CANCELLED to those, which nobody retries. So the listener stops first, which tells clients that this connection ends, and then
        they are refused.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._dismissed.wait(), _LONGEST_WAIT_S)
