"""The hosts of a URL, tried in order, each with a timeout of its own.

asyncpg's timeout is one for all hosts: if the first one does not respond, no other is tried.
"""

import asyncio
import contextlib
import math
import time
from typing import Any

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from service.database_url import DatabaseUrl
from service.postgres.connection import connect as connect_to_host

_UNRESPONSIVE_S = 10.0  # for so long, a host that timed out is not asked if it is a standby


class _Hosts:
    """Which host was connected to last, and which ones timed out."""

    def __init__(self, url: DatabaseUrl, patience: float) -> None:
        self._url = url
        self._patience = patience
        self._good = 0
        self._timed_out_at: dict[int, float] = {}

    def in_order(self) -> list[int]:
        """Return the host that was connected to last, the others, then those that timed out, the latest of them last."""
        count = len(self._url.hosts)
        from_good = [(self._good + offset) % count for offset in range(count)]
        return sorted(from_good, key=self.since_timeout, reverse=True)

    def since_timeout(self, host: int) -> float:
        """Return the seconds since the host timed out; infinite if it was connected to since."""
        return time.monotonic() - self._timed_out_at.get(host, -math.inf)

    async def connect(self, host: int, attributes: SessionAttribute, **kwargs: Any) -> asyncpg.Connection:
        began = time.monotonic()
        try:
            connection = await connect_to_host(self._url, self._url.hosts[host], attributes=attributes, **kwargs)
        except (TimeoutError, asyncio.CancelledError) as exc:
            now = time.monotonic()
            if isinstance(exc, TimeoutError) or now - began > self._patience:
                self._timed_out_at[host] = now
            raise
        self._good = host
        self._timed_out_at.pop(host, None)
        return connection


def connecting(url: DatabaseUrl, *, unavailable: tuple[type[BaseException], ...], patience: float = math.inf) -> Any:
    """Return a function for `create_pool(connect=...)`: it connects to the first host that can be used, beginning with the last good one.

    A host that timed out comes after all others until it is connected to. If a standby is preferred, hosts are first asked for one, except
    those that have just timed out, and then those that are not standbys.

    Args:
        unavailable: errors of a host after which the next one is tried; the error of the last host is raised.
        patience: the seconds after which a cancelled attempt counts as timed out.
    """
    hosts = _Hosts(url, patience)

    async def connect(dsn: None = None, *, target_session_attrs: SessionAttribute | None = None, **kwargs: Any) -> asyncpg.Connection:
        async def first_of(candidates: list[int], attributes: SessionAttribute) -> asyncpg.Connection:
            *others, last = candidates
            for other in others:
                with contextlib.suppress(*unavailable):
                    return await hosts.connect(other, attributes, **kwargs)
            return await hosts.connect(last, attributes, **kwargs)

        attributes = target_session_attrs or SessionAttribute(url.target_session_attrs)
        order = hosts.in_order()
        if attributes is not SessionAttribute.prefer_standby or len(order) == 1:
            return await first_of(order, attributes)
        primaries = []
        # One by one: given a single host, asyncpg accepts a primary in place of the preferred standby.
        for host in [host for host in order if hosts.since_timeout(host) > _UNRESPONSIVE_S]:
            with contextlib.suppress(*unavailable):
                try:
                    return await hosts.connect(host, SessionAttribute.standby, **kwargs)
                except asyncpg.TargetServerAttributeNotMatched:
                    primaries.append(host)
        return await first_of(primaries or order, SessionAttribute.any)

    return connect
