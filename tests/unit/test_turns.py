"""Turns of clients at limited work."""

import asyncio

import pytest

from service.postgres.turns import Turns
from tests.support.eventually import eventually


async def _request(turns: Turns, client: str, served: list[str]) -> None:
    await turns.acquire(client)
    served.append(client)
    await asyncio.sleep(0)
    turns.release()


async def test_clients_are_served_in_turn() -> None:
    """A client with many requests delays another client by one request only."""
    turns, served = Turns(1), list[str]()
    await turns.acquire("first")
    requests = [asyncio.ensure_future(_request(turns, client, served)) for client in ("many",) * 5 + ("one", "two", "two")]
    await asyncio.sleep(0)
    turns.release()
    await asyncio.gather(*requests)
    assert served == ["many", "one", "two", "many", "two", "many", "many", "many"]


@pytest.mark.parametrize("limit", [1, 3])
async def test_limit(limit: int) -> None:
    """At most `limit` requests are served at the same time."""
    turns, served = Turns(limit), list[str]()
    requests = [asyncio.ensure_future(turns.acquire(str(number))) for number in range(5)]
    await eventually(lambda: sum(request.done() for request in requests), limit)
    for number in range(limit, 5):
        turns.release()
        await eventually(lambda: sum(request.done() for request in requests), number + 1)
    for _ in range(5):
        turns.release()
    await asyncio.gather(*(_request(turns, "", served) for _ in range(5)))
    assert len(served) == 5


@pytest.mark.parametrize("moment", ["waiting", "served in the same iteration"])
async def test_cancelled_request(moment: str) -> None:
    """A request that is cancelled, before its turn or just when it comes, leaves its turn to the next one."""
    turns = Turns(1)
    await turns.acquire("first")
    cancelled, other = (asyncio.ensure_future(turns.acquire(client)) for client in ("cancelled", "other"))
    await asyncio.sleep(0)
    if moment != "waiting":
        turns.release()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    if moment == "waiting":
        turns.release()
    await asyncio.wait_for(other, 5)
    turns.release()
    await asyncio.wait_for(turns.acquire("next"), 5)


async def test_turn_comes_in_the_iteration_of_the_cancellation() -> None:
    """A turn that is given to a request that has just been cancelled goes to the next one."""
    turns = Turns(1)
    await turns.acquire("first")
    cancelled, other = (asyncio.ensure_future(turns.acquire(client)) for client in ("cancelled", "other"))
    await asyncio.sleep(0)
    cancelled.cancel()
    turns.release()
    await asyncio.wait_for(other, 5)
    assert cancelled.cancelled()
