"""The address of a client, behind a trusted proxy and without one."""

import ipaddress

import pytest

from service.api.client_address import Client, ClientAddresses

_CLIENTS = ClientAddresses([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("ipv4:10.1.2.3:50", ["203.0.113.7"], Client("203.0.113.7", "203.0.113.7")),
        ("ipv4:10.1.2.3:50", ["192.0.2.1, 203.0.113.7"], Client("203.0.113.7", "203.0.113.7")),
        ("ipv4:10.1.2.3:50", ["192.0.2.1", "203.0.113.7"], Client("203.0.113.7", "203.0.113.7")),
        ("ipv6:%5Bfd00::1%5D:50", ["2001:db8:1:2:3::9"], Client("2001:db8:1:2:3::9", "2001:db8:1:2::/64")),
        ("ipv6:%5B::ffff:10.1.2.3%5D:50", ["203.0.113.7"], Client("203.0.113.7", "203.0.113.7")),
        ("ipv4:10.1.2.3:50", ["203.0.113.7, junk"], Client("ipv4:10.1.2.3:50", "10.1.2.3")),
        ("ipv4:10.1.2.3:50", [""], Client("ipv4:10.1.2.3:50", "10.1.2.3")),
        ("ipv4:10.1.2.3:50", [], Client("ipv4:10.1.2.3:50", "10.1.2.3")),
        ("ipv4:192.0.2.9:50", ["203.0.113.7"], Client("ipv4:192.0.2.9:50", "192.0.2.9")),
        ("ipv6:%5B2001:db8::9%5D:50", ["203.0.113.7"], Client("ipv6:%5B2001:db8::9%5D:50", "2001:db8::/64")),
        ("unix:", ["203.0.113.7"], Client("unix:", "unix:")),
    ],
)
def test_client(peer: str, forwarded: list[str], client: Client) -> None:
    """Only the last forwarded address counts, and only if the peer is trusted; an IPv6 client is limited by its /64 network."""
    assert _CLIENTS.client(peer, [("x-forwarded-for", value) for value in forwarded]) == client
