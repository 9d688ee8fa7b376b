"""Free ports."""

import contextlib
import random
import socket
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Return free ports outside the range of the kernel's client ports.

    While its replica is down, a port in this range could be taken by the client's side of a connection, even of a connection to the port
    itself: TCP connects a port to itself.
    """
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    outside = max(range(2_000, low), range(high + 1, 1 << 16), key=len)
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = random.SystemRandom().choice(outside)  # independent of seeds that tests set
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    return found
