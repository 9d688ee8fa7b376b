"""A server in the process of the tests."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from service.server import Server

StartServer = Callable[..., AbstractAsyncContextManager[Server]]
"""Starts a server over the database of the test; takes settings as keyword arguments."""
