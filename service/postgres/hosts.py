"""Several hosts in one URL, as libpq has them, each with a time of its own.

asyncpg's timeout is one for all of them: a first host that says nothing would be all that is tried.
"""

import contextlib
import math
import re
import time
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

_SILENT_S = 10.0  # for so long, a host that said nothing is not asked for a standby
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]+)(:(?P<port>\d+))?")


class _Host(NamedTuple):
    host: str
    port: int | None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"host": self.host, "port": self.port or 5432}


def _hosts(url: str) -> list[_Host]:
    """Those of the URL's authority, or of its query, with their ports."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    if "host" in query:
        names, ports = query["host"][-1].split(","), query.get("port", [""])[-1].split(",")
        return [_Host(name, int(port) if port else None) for name, port in zip(names, ports * len(names), strict=False)]
    found = [_AUTHORITY.fullmatch(each) for each in parts.netloc.rpartition("@")[2].split(",")]
    return [_Host(unquote(match["host"].strip("[]")), int(match["port"]) if match["port"] else None) for match in found if match]


def connecting(url: str, *, unavailable: tuple[type[BaseException], ...]) -> Any:
    """A function to call as `asyncpg.connect` is, whose timeout is each host's own; it begins with the host that was good last.

    Where a standby is preferred, hosts are asked for one first, but those that have just said nothing for all of their time; and then those
    that have said that they are none. So a host that is gone takes its time once, and leaves some for the others.

    Args:
        unavailable: what a host raises in whose place the next is tried; what the last one raised is raised.
    """
    hosts = _hosts(url)
    if len(hosts) < 2:
        return asyncpg.connect
    good = 0
    silent: dict[int, float] = {}  # hosts, and when they said nothing

    async def connect(*args: Any, target_session_attrs: SessionAttribute | None = None, **kwargs: Any) -> Any:
        async def connect_to(index: int, attributes: SessionAttribute) -> Any:
            nonlocal good
            try:
                connection = await asyncpg.connect(*args, **kwargs | hosts[index].arguments, target_session_attrs=attributes)
            except TimeoutError:
                silent[index] = time.monotonic()
                raise
            good = index
            return connection

        async def first_of(candidates: list[int], attributes: SessionAttribute) -> Any:
            *others, last = candidates
            for other in others:
                with contextlib.suppress(*unavailable):
                    return await connect_to(other, attributes)
            return await connect_to(last, attributes)

        wanted = target_session_attrs or SessionAttribute(wanted_attributes(url) or "any")
        order = [(good + offset) % len(hosts) for offset in range(len(hosts))]
        if wanted is not SessionAttribute.prefer_standby:
            return await first_of(order, wanted)
        primaries = []
        # Asked one by one: of one host alone asyncpg would take a primary for a standby that is preferred.
        for index in [index for index in order if time.monotonic() - silent.get(index, -math.inf) > _SILENT_S]:
            with contextlib.suppress(*unavailable):
                try:
                    return await connect_to(index, SessionAttribute.standby)
                except asyncpg.TargetServerAttributeNotMatched:
                    primaries.append(index)
        return await first_of(primaries or order, SessionAttribute.any)

    return connect


def wanted_attributes(url: str) -> str | None:
    """The URL's `target_session_attrs`."""
    return parse_qs(urlsplit(url).query).get("target_session_attrs", [None])[-1]
