"""Several hosts in one URL, as libpq has them, each with a time of its own.

asyncpg's timeout is one for all of them: a first host that says nothing would be all that is tried.
"""

import asyncio
import contextlib
import math
import re
import time
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

_SILENT_S = 10.0  # for so long, a host that said nothing is not asked for a standby
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]+)(:(?P<port>\d*))?")


class _Host(NamedTuple):
    host: str
    port: int | None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"host": self.host, "port": self.port or 5432}


def _named(url: str) -> list[_Host]:
    """Those of the URL's authority, or of its query, with their ports."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    if "host" in query:
        names, ports = query["host"][-1].split(","), query.get("port", [""])[-1].split(",")
        return [_Host(name, int(port) if port else None) for name, port in zip(names, ports * len(names), strict=False)]
    found = [_AUTHORITY.fullmatch(each) for each in parts.netloc.rpartition("@")[2].split(",")]
    return [_Host(unquote(match["host"].strip("[]")), int(match["port"]) if match["port"] else None) for match in found if match]


class _Hosts:
    """Which of them was good last, and which said nothing."""

    def __init__(self, hosts: list[_Host], patience: float) -> None:
        self._hosts = hosts
        self._patience = patience
        self._good = 0
        self._silent_at: dict[int, float] = {}

    def in_order(self) -> list[int]:
        """The one that was good last, the others, then those that said nothing when they were last asked, the latest of them last."""
        from_good = [(self._good + offset) % len(self._hosts) for offset in range(len(self._hosts))]
        return sorted(from_good, key=self.since_silent, reverse=True)

    def since_silent(self, host: int) -> float:
        """Seconds; infinite where it was connected to since."""
        return time.monotonic() - self._silent_at.get(host, -math.inf)

    async def connect(self, host: int, *args: Any, **kwargs: Any) -> Any:
        """To this one, as `asyncpg.connect` does."""
        began = time.monotonic()
        try:
            connection = await asyncpg.connect(*args, **kwargs | self._hosts[host].arguments)
        except (TimeoutError, asyncio.CancelledError) as exc:
            now = time.monotonic()
            if isinstance(exc, TimeoutError) or now - began > self._patience:
                self._silent_at[host] = now
            raise
        self._good = host
        self._silent_at.pop(host, None)
        return connection


def connecting(url: str, *, unavailable: tuple[type[BaseException], ...], patience: float = math.inf) -> Any:
    """A function to call as `asyncpg.connect` is, whose timeout is each host's own; it begins with the host that was good last.

    A host that says nothing takes its time once, and comes after all others until it is connected to. Where a standby is preferred,
    hosts are asked for one first, but those that have just said nothing; and then those that have said that they are none.

    Args:
        unavailable: what a host raises in whose place the next is tried; what the last one raised is raised.
        patience: the seconds after which a host has said nothing, also where whoever connects gives up before the host's time is over.
    """
    named = _named(url)
    if len(named) < 2:
        return asyncpg.connect
    hosts = _Hosts(named, patience)

    async def connect(*args: Any, target_session_attrs: SessionAttribute | None = None, **kwargs: Any) -> Any:
        async def first_of(candidates: list[int], attributes: SessionAttribute) -> Any:
            *others, last = candidates
            for other in others:
                with contextlib.suppress(*unavailable):
                    return await hosts.connect(other, *args, **kwargs, target_session_attrs=attributes)
            return await hosts.connect(last, *args, **kwargs, target_session_attrs=attributes)

        wanted = target_session_attrs or SessionAttribute(wanted_attributes(url) or "any")
        order = hosts.in_order()
        if wanted is not SessionAttribute.prefer_standby:
            return await first_of(order, wanted)
        primaries = []
        # Asked one by one: of one host alone asyncpg would take a primary for a standby that is preferred.
        for host in [host for host in order if hosts.since_silent(host) > _SILENT_S]:
            with contextlib.suppress(*unavailable):
                try:
                    return await hosts.connect(host, *args, **kwargs, target_session_attrs=SessionAttribute.standby)
                except asyncpg.TargetServerAttributeNotMatched:
                    primaries.append(host)
        return await first_of(primaries or order, SessionAttribute.any)

    return connect


def wanted_attributes(url: str) -> str | None:
    """The URL's `target_session_attrs`."""
    return parse_qs(urlsplit(url).query).get("target_session_attrs", [None])[-1]
