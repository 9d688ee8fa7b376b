"""A server in the process of the tests."""

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest

from service import pb
from service.composition import build_server
from service.server import Server
from service.settings import Settings

StartServer = Callable[..., AbstractAsyncContextManager[Server]]
"""Starts a server over the database of the test; takes settings as keyword arguments."""

both_ways_to_accept = pytest.mark.parametrize("concurrent_accept", ["true", "false"])
"""Runs a test with servers that accept several calls of a method at the same time, and with servers that accept one at a time."""

StartGuardedChannel = Callable[..., AbstractAsyncContextManager[grpc.aio.Channel]]
"""Starts a server that requires tokens and connects to it; takes the JWKS, and settings as keyword arguments."""

StartGuarded = Callable[..., AbstractAsyncContextManager[pb.BackupServiceStub]]
"""Starts a server that requires tokens; takes the JWKS, and settings as keyword arguments."""


async def start(**settings: Any) -> Server:
    """Return a running server with these settings. The caller shuts it down."""
    accept = os.environ.get("TEST_CONCURRENT_ACCEPT")
    chosen = {"concurrent_accept": accept} if accept else {}
    return await (await build_server(Settings.read(**chosen | settings))).start()
