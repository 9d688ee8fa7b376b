"""A server in the process of the tests."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import grpc
import pytest

from service import pb
from service.composition import build_server
from service.server import Server
from service.settings import Settings

StartServer = Callable[..., AbstractAsyncContextManager[Server]]
"""Starts a server over the database of the test; takes settings as keyword arguments."""

both_ways_to_accept = pytest.mark.parametrize("concurrent_accept", ["true", "false"])
"""Runs a test with servers that accept several calls of a method at once, and with servers that accept one at a time."""

StartGuardedChannel = Callable[..., AbstractAsyncContextManager[grpc.aio.Channel]]
"""Starts a server that requires tokens and connects to it; takes the JWKS, and settings as keyword arguments."""

StartGuarded = Callable[..., AbstractAsyncContextManager[pb.BackupServiceStub]]
"""Starts a server that requires tokens; takes the JWKS, and settings as keyword arguments."""


async def start(settings: Settings) -> Server:
    """Return a running server. The caller shuts it down."""
    return await (await build_server(settings)).start()
