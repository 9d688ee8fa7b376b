"""Network addresses to listen on or to connect to."""

import ipaddress
from typing import NamedTuple, TypeAlias

from service.errors import PortTaken

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class Address(NamedTuple):
    """A host and a port. A listener on port 0 gets any free port."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Return True if a host is `localhost`, in 127.0.0.0/8, or ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def port_taken(address: Address, *, setting: str) -> PortTaken:
    """Return the error for an address that cannot be listened on. `setting` is the variable that contains it."""
    example = address._replace(port=address.port + 1 if 0 < address.port < 2**16 - 1 else 50052)
    return PortTaken(f"Cannot listen on {address}. If another process uses it, set {setting} to another address, such as {example}.")
