"""Server that runs the command `backup-service`, each time in a new process.

It has imported the service already, and forks. A command still has a process, standard streams, an environment and an exit status of its
own, but takes a tenth of the CPU. Tests of the start or the end of the interpreter run `python -m service` instead.
"""

import asyncio
import contextlib
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import NoReturn

import service
from tests.support import processes
from tests.support.commands import Done, environment
from tests.support.repository import ROOT

GRPC = {"GRPC_VERBOSITY": "NONE", "GRPC_EXPERIMENTS": "-event_engine_listener"}
"""Variables of a process that forks commands. gRPC reads them when it is imported, so `service/__main__.py` would set them too late."""

_DESCRIPTORS = 5  # the request, the standard streams, and the exit status


class CommandServer:
    """A running server."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def run(self, *arguments: str, stdin: bytes = b"", **settings: str) -> Done:
        """Run a command until it exits, with these settings as its environment."""
        request = json.dumps({"arguments": arguments, "environment": environment(**settings)}).encode()
        requests, inputs, outputs, errors, statuses = (os.pipe() for _ in range(_DESCRIPTORS))
        socket.send_fds(self._connection, [b"."], [requests[0], inputs[0], outputs[1], errors[1], statuses[1]])
        for descriptor in (requests[0], inputs[0], outputs[1], errors[1], statuses[1]):
            os.close(descriptor)
        writing = asyncio.gather(
            processes.in_thread(_write, requests[1], request),
            processes.in_thread(_write, inputs[1], stdin),
        )
        stdout, stderr, status = await asyncio.gather(*(processes.in_thread(_read, each[0]) for each in (outputs, errors, statuses)))
        await writing
        return Done(int(status), stdout.decode(), stderr.decode())


def _write(descriptor: int, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(descriptor, "wb") as file:
        file.write(content)


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


@contextlib.contextmanager
def command_server() -> Iterator[CommandServer]:
    """Run a server within the context."""
    ours, its = socket.socketpair()
    with ours, its:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(its.fileno())],
            cwd=ROOT,
            env=environment(**GRPC),
            pass_fds=[its.fileno()],
            stdin=subprocess.PIPE,  # a command inherits Python's streams, which are not those of pipes otherwise
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            its.close()
            yield CommandServer(ours)
            ours.close()
            _, stderr = process.communicate()
            assert (process.returncode, stderr) == (0, b"")


class _Server:
    """The process that the commands are forked from."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)

    def serve(self) -> None:
        """Start a command for each request, and report its exit status, until the connection is closed."""
        while True:
            for key, _ in self._selector.select():
                if key.data:
                    self._report(key.fd, *key.data)
                    continue
                _, descriptors, _, _ = socket.recv_fds(self._connection, 1, _DESCRIPTORS)
                if not descriptors:
                    return
                self._start(*descriptors)

    def _start(self, request: int, stdin: int, stdout: int, stderr: int, status: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._selector.close()
            self._connection.close()
            os.close(status)
            _run(request, stdin, stdout, stderr)
        for descriptor in (request, stdin, stdout, stderr):
            os.close(descriptor)
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))

    def _report(self, pidfd: int, pid: int, status: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _write(status, str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def _run(request: int, *streams: int) -> NoReturn:
    """Become the command, and exit."""
    given = json.loads(_read(request))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(given["environment"])
    sys.argv[1:] = given["arguments"]
    try:
        runpy.run_module("service", run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        sys.stdout.flush()
        sys.stderr.flush()
        # sys.exit() would deallocate the modules. That copies the memory that they share with the server, and doubles a command's CPU.
        os._exit(int(exc.code or 0))
    sys.exit("the command has not exited")


def _import_service() -> None:
    """Import the modules that commands use. Only servers with traces use `service.observability.tracing`."""
    for module in pkgutil.walk_packages(service.__path__, "service."):
        if module.name not in ("service.__main__", "service.observability.tracing"):
            importlib.import_module(module.name)


if __name__ == "__main__":
    _import_service()
    _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
