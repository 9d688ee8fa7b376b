"""A limit on concurrent work, for which clients wait in turn."""

import asyncio
from collections import OrderedDict, deque


class Turns:
    """A semaphore that serves waiting clients in turn, so that a client with many requests does not delay the others."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """The requests of each client, oldest first. The first client is served next."""

    async def acquire(self, client: str) -> None:
        """Wait for a turn."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(client, turn)
            else:  # the turn came and the request was cancelled in the same iteration of the event loop
                self.release()
            raise

    def release(self) -> None:
        """Give the turn to the next client, which then moves to the end."""
        if not self._waiting:
            self._free += 1
            return
        client, requests = self._waiting.popitem(last=False)
        turn = requests.popleft()
        if requests:
            self._waiting[client] = requests
        if turn.cancelled():  # in this iteration of the event loop, so `acquire` has not removed it yet
            self.release()
        else:
            turn.set_result(None)

    def _leave(self, client: str, turn: "asyncio.Future[None]") -> None:
        requests = self._waiting.get(client, deque())
        if turn in requests:
            requests.remove(turn)
            if not requests:
                del self._waiting[client]
