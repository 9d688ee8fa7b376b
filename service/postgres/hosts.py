"""Several hosts in one URL, as libpq has them, each with a time of its own.

asyncpg's timeout is one for all of them: a first host that says nothing would be all that is tried.
"""

import contextlib
import re
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

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

    Args:
        unavailable: what a host raises in whose place the next is tried; what the last one raised is raised.
    """
    hosts = _hosts(url)
    if len(hosts) < 2:
        return asyncpg.connect
    good = 0

    async def connect(*args: Any, target_session_attrs: SessionAttribute | None = None, **kwargs: Any) -> Any:
        async def connect_to(attributes: SessionAttribute, index: int) -> Any:
            nonlocal good
            connection = await asyncpg.connect(*args, **kwargs | hosts[index].arguments, target_session_attrs=attributes)
            good = index
            return connection

        passes = _passes(target_session_attrs or SessionAttribute(wanted_attributes(url) or "any"))
        *others, last = [(attributes, (good + offset) % len(hosts)) for attributes in passes for offset in range(len(hosts))]
        for other in others:
            with contextlib.suppress(*unavailable):
                return await connect_to(*other)
        return await connect_to(*last)

    return connect


def wanted_attributes(url: str) -> str | None:
    """The URL's `target_session_attrs`."""
    return parse_qs(urlsplit(url).query).get("target_session_attrs", [None])[-1]


def _passes(wanted: SessionAttribute) -> list[SessionAttribute]:
    """Of one host alone asyncpg would take a primary for a standby that is preferred."""
    return [SessionAttribute.standby, SessionAttribute.any] if wanted is SessionAttribute.prefer_standby else [wanted]
