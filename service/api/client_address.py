"""The address of the client that makes a call.

A proxy such as Envoy appends the address of its own client to `x-forwarded-for`. Only the last address counts, and only if the peer of
the connection is a trusted proxy: everything before it was sent by the client and can be forged.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote

from service.address import Network

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_FORWARDED_FOR = "x-forwarded-for"
_CACHED = 4096


_current: ContextVar[str] = ContextVar("client", default="")


def current_client() -> str:
    """Return the key of the current client's limits: the token's subject, or the address."""
    return _current.get()


def set_current_client(key: str) -> None:
    """Set the key of the current call's client. Each call is a task with a context of its own."""
    _current.set(key)


class Client(NamedTuple):
    """A client before it is authenticated."""

    address: str
    """For the log: the peer of the connection, with its port, or the address that a trusted proxy forwarded."""
    key: str
    """Key of the client's limits: an IPv4 address, or the /64 network of an IPv6 address, because one client can use all its addresses."""


class ClientAddresses:
    """Finds the address of a call's client."""

    def __init__(self, trusted_proxies: Sequence[Network] = ()) -> None:
        self._trusted = tuple(trusted_proxies)
        self._peer = lru_cache(maxsize=_CACHED)(self._find_peer)

    def client(self, peer: str, metadata: Iterable[tuple[str, str | bytes]]) -> Client:
        """Return the client of a call.

        Args:
            peer: the peer of the connection, as `context.peer()` returns it: `ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000` or `unix:`.
        """
        client, is_trusted = self._peer(peer)
        if is_trusted:
            return _forwarded(metadata) or client
        return client

    def _find_peer(self, peer: str) -> tuple[Client, bool]:
        host = unquote(peer.partition(":")[2].rpartition(":")[0])
        if (address := _parse(host)) is None:  # a Unix socket
            return Client(peer, peer), False
        return Client(peer, _key(address)), any(address in network for network in self._trusted)


def _forwarded(metadata: Iterable[tuple[str, str | bytes]]) -> Client | None:
    values = [value for key, value in metadata if key == _FORWARDED_FOR]
    last = values[-1] if values else None
    return _client_of(last.rpartition(",")[2].strip()) if isinstance(last, str) else None


@lru_cache(maxsize=_CACHED)
def _client_of(text: str) -> Client | None:
    address = _parse(text)
    return Client(str(address), _key(address)) if address else None


def _parse(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _key(address: _Address) -> str:
    return str(address) if address.version == 4 else str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
