"""Concurrency of the catalog's queries."""

import asyncio
from typing import Any

from service.postgres.catalog import Catalog


class _Database:
    """Queries that do not finish before `finish` is set."""

    def __init__(self) -> None:
        self.running, self.most = 0, 0
        self.finish = asyncio.Event()

    async def fetch(self, *_: object) -> list[Any]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.finish.wait()
        finally:
            self.running -= 1
        return []


async def test_large_pages_wait_for_each_other() -> None:
    """At most two large pages are read at once, and a small one does not wait for them."""
    database = _Database()
    catalog = Catalog(database)  # type: ignore[arg-type]
    large = [asyncio.ensure_future(catalog.page("f1", after=None, size=1000)) for _ in range(10)]
    await asyncio.sleep(0)
    assert database.running == 2

    small = asyncio.ensure_future(catalog.page("f1", after=None, size=100))
    await asyncio.sleep(0)
    assert database.running == 3

    database.finish.set()
    assert [page.elements for page in await asyncio.gather(small, *large)] == [[]] * 11
    assert database.most == 3


async def test_a_cancelled_large_page_makes_room() -> None:
    """A large page that is cancelled, while it is read or while it waits, lets the others be read."""
    database = _Database()
    catalog = Catalog(database)  # type: ignore[arg-type]
    large = [asyncio.ensure_future(catalog.page("f1", after=None, size=1000)) for _ in range(5)]
    await asyncio.sleep(0)
    for page in (large[0], large[1], large[3]):
        page.cancel()
    database.finish.set()
    async with asyncio.timeout(5):
        results = await asyncio.gather(*large, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, True, False, True, False]
