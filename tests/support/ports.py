"""Free ports."""

import contextlib
import random
import socket
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, outside the range that the kernel gives to clients.

    A port within it could be taken by anybody's connection while its replica is down; even by one to itself, since a connection to a
    port that nobody listens on succeeds where it happens to come from that very port.
    """
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    outside = max(range(2_000, low), range(high + 1, 1 << 16), key=len)
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = random.SystemRandom().choice(outside)  # whatever a test has seeded
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    return found
