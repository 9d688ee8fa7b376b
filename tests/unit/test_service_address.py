"""Addresses of services that the client commands accept."""

import pytest

from service.cli.client.service_address import ServiceAddress
from service.errors import CommandError


@pytest.mark.parametrize(
    ("text", "target", "is_local"),
    [
        ("127.0.0.1:50051", "dns:///127.0.0.1:50051", True),
        ("127.255.255.254:1", "dns:///127.255.255.254:1", True),
        ("[::1]:65535", "dns:///[::1]:65535", True),
        ("localhost:1", "dns:///localhost:1", True),
        ("LocalHost:1", "dns:///LocalHost:1", True),
        ("unix:/run/backups", "unix:/run/backups", True),
        ("unix:///run/backups", "unix:///run/backups", True),
        ("backups.example.com:443", "dns:///backups.example.com:443", False),
        ("10.0.0.1:1", "dns:///10.0.0.1:1", False),
        ("0.0.0.0:1", "dns:///0.0.0.0:1", False),
        ("[2001:db8::1]:1", "dns:///[2001:db8::1]:1", False),
        ("127.example.com:1", "dns:///127.example.com:1", False),
        ("localhost.example.com:1", "dns:///localhost.example.com:1", False),
        ("ipv4:80", "dns:///ipv4:80", False),  # a host of this name, and not gRPC's scheme
        ("envoy_1:8080", "dns:///envoy_1:8080", False),
    ],
)
def test_addresses(text: str, target: str, is_local: bool) -> None:
    """An address is host:port or unix:PATH; only loopback addresses, localhost and sockets are local."""
    address = ServiceAddress.parse(text)
    assert (address.target, address.is_local) == (target, is_local)


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", ":1", "host:0", "host:65536", "host:1:2", "host:+1", "host:1 ", " host:1", "host:\u0661", "host:1\n"),
        *(
            "::1",
            "[::1]",
            "[::1:1",
            "dns:///h:1",
            "h/x:1",
            "h,i:1",
            "user@h:1",
            "https://h:1",
            "xds:x",
            "ipv4:1.2.3.4:5",
            "unix:",
            "\u00e9:1",
        ),
        *("unix:/a\n", "x" * 100_000),
    ],
)
def test_invalid_addresses(text: str) -> None:
    """Texts of other forms are rejected, because gRPC would add port 443 or use another scheme."""
    with pytest.raises(CommandError, match="is not the address of a service: use host:port") as caught:
        ServiceAddress.parse(text)
    assert len(str(caught.value)) < 300
