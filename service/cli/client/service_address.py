"""Address of the service that a client command calls."""

import ipaddress
import re
from typing import NamedTuple

from service.entry import quoted
from service.errors import CommandError

_TCP = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?):(?P<port>\d{1,5})", re.ASCII)


class ServiceAddress(NamedTuple):
    """A TCP address, or the path of a Unix socket."""

    text: str
    """As the user wrote it."""
    host: str = ""
    port: int = 0
    path: str = ""
    """Of a Unix socket."""

    @classmethod
    def parse(cls, text: str) -> "ServiceAddress":
        """Parse `host:port`, `[IPv6]:port` or `unix:PATH`.

        Raises:
            CommandError: the address has another form. gRPC would accept it, and connect to port 443 if the port is missing.
        """
        if text.startswith("unix:") and text.isprintable() and (path := text.removeprefix("unix:")):
            return cls(text, path=path)
        matched = _TCP.fullmatch(text)
        if not matched or not 0 < int(matched["port"]) < 2**16:
            raise CommandError(f"{quoted(text)} is not the address of a service: use host:port, such as 127.0.0.1:50051, or unix:PATH")
        return cls(text, host=matched["host"].removeprefix("[").removesuffix("]"), port=int(matched["port"]))

    @property
    def is_local(self) -> bool:
        """True if calls stay on this machine: a Unix socket, `localhost` or a loopback address."""
        if self.path or self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def target(self) -> str:
        """The name for gRPC, with its scheme. Otherwise gRPC would take a host name such as `ipv4` or `xds` for the scheme."""
        if self.path:
            return self.text
        return f"dns:///[{self.host}]:{self.port}" if ":" in self.host else f"dns:///{self.host}:{self.port}"
