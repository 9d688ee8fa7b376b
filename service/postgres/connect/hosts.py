"""Hosts of a database URL, tried in order, each with its own timeout.

asyncpg has one timeout for all hosts of a URL: if the first one does not answer, no other host is tried.
"""

import asyncio
import math
import time
from typing import Any, Protocol

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from service.database_url import DatabaseUrl
from service.errors import ConnectFailed
from service.postgres.connect.connection import connect as connect_to_host
from service.postgres.errors import is_timeout

_UNRESPONSIVE_S = 10.0


class Connect(Protocol):
    """Function that opens a connection, with the arguments that `asyncpg.create_pool` passes; the DSN is always None."""

    async def __call__(self, dsn: str | None = None, **options: Any) -> asyncpg.Connection:
        """Open a connection.

        Raises:
            ConnectFailed: no host could be used.
        """


class Hosts:
    """The hosts of a URL, with the one that was connected to last, and those that timed out."""

    def __init__(self, url: DatabaseUrl, *, slow_s: float = math.inf) -> None:
        """
        Args:
            slow_s: seconds after which a cancelled attempt counts as timed out.
        """
        self._url = url
        self._slow_s = slow_s
        self._last_used = 0
        self._timed_out_at: dict[int, float] = {}

    async def connect(
        self, dsn: str | None = None, *, target_session_attrs: SessionAttribute | None = None, **options: Any
    ) -> asyncpg.Connection:
        """Connect to the first usable host, starting with the one that was connected to last.

        Hosts that timed out come after all others until they are connected to again.

        Args:
            target_session_attrs: replaces that of the URL.
            options: arguments of `service.postgres.connect.connection.connect`.

        Raises:
            ConnectFailed: no host could be used; the message has the cause for each one.
        """
        attributes = target_session_attrs or SessionAttribute(self._url.target_session_attrs)
        hosts = self._in_order()
        if attributes is SessionAttribute.prefer_standby and len(hosts) > 1:
            return await self._connect_preferring_standby(hosts, options)
        return await self._connect_to_first(hosts, attributes, options)

    async def _connect_to_first(self, hosts: list[int], attributes: SessionAttribute, options: dict[str, Any]) -> asyncpg.Connection:
        causes = []
        for host in hosts:
            try:
                return await self._connect_to(host, attributes, options)
            except ConnectFailed as exc:
                causes.append(str(exc))
                last = exc
        if len(causes) == 1:
            raise last
        raise ConnectFailed("; ".join(causes)) from last.__cause__

    async def _connect_preferring_standby(self, hosts: list[int], options: dict[str, Any]) -> asyncpg.Connection:
        """Connect to a standby, or to any host if there is none.

        Hosts that have just timed out are not tried as standbys. Each call of asyncpg has one host and requires a standby, because with
        "prefer-standby" and one host it would accept a primary.
        """
        primaries = []
        for host in hosts:
            if self._since_timeout(host) <= _UNRESPONSIVE_S:
                continue
            try:
                return await self._connect_to(host, SessionAttribute.standby, options)
            except ConnectFailed as exc:
                if isinstance(exc.__cause__, asyncpg.TargetServerAttributeNotMatched):
                    primaries.append(host)
        return await self._connect_to_first(primaries or hosts, SessionAttribute.any, options)

    async def _connect_to(self, host: int, attributes: SessionAttribute, options: dict[str, Any]) -> asyncpg.Connection:
        began = time.monotonic()
        try:
            connection = await connect_to_host(self._url, self._url.hosts[host], attributes=attributes, **options)
        except (ConnectFailed, asyncio.CancelledError) as exc:
            now = time.monotonic()
            if is_timeout(exc) or (isinstance(exc, asyncio.CancelledError) and now - began > self._slow_s):
                self._timed_out_at[host] = now
            raise
        self._last_used = host
        self._timed_out_at.pop(host, None)
        return connection

    def _in_order(self) -> list[int]:
        """Return the host that was connected to last, the others, then those that timed out, the latest of them last."""
        count = len(self._url.hosts)
        from_last_used = [(self._last_used + offset) % count for offset in range(count)]
        return sorted(from_last_used, key=self._since_timeout, reverse=True)

    def _since_timeout(self, host: int) -> float:
        """Return the seconds since the host timed out; infinite if it never did, or if a connection succeeded later."""
        return time.monotonic() - self._timed_out_at.get(host, -math.inf)
