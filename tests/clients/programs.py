"""The official clients as programs that read calls and print their results, as lines of JSON."""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.repository import ROOT

HERE = Path(__file__).parent
_INSTALLED = ROOT / ".clients"


class Row(NamedTuple):
    """A backup as a client returned it. Times are in microseconds since 1970."""

    id: str
    folder_id: str
    created_at: int
    source_cluster_id: str
    started_at: int
    size: int
    type: int
    method: int
    journal_size: int


class ClientError(NamedTuple):
    """An error as a client reports it."""

    code: int | None
    message: str
    request_id: str


class Program:
    """A running official client that calls an address and trusts the certificates of a file."""

    def __init__(self, command: list[str], address: str, ca_file: Path, log: Path) -> None:
        environment = {"PATH": os.environ["PATH"], "NODE_PATH": str(_INSTALLED / "node" / "node_modules"), "SSL_CERT_FILE": str(ca_file)}
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [*command, address, str(ca_file)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        self._log = log

    async def call(self, name: str, **arguments: Any) -> "list[Row] | ClientError":
        """Make a call on a new connection and return its result. The arguments include the `token`."""
        response = await asyncio.to_thread(self._exchange, json.dumps({"call": name} | arguments))
        if "backups" in response:
            return [Row(*values) for values in response["backups"]]
        return ClientError(**response)

    def _exchange(self, line: str) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        response = self._process.stdout.readline()
        assert response, self._log.read_text(encoding="utf-8")[-2000:]
        parsed: dict[str, Any] = json.loads(response)
        return parsed

    def close(self) -> None:
        """Kill the program."""
        self._process.kill()
        self._process.communicate()


_COMMANDS = {
    "python": [str(_INSTALLED / "python" / "bin" / "python"), str(HERE / "python" / "calls.py")],
    "node": ["node", str(HERE / "node" / "calls.js")],
    "go_v1": [str(_INSTALLED / "go-v1")],
    "go_v2": [str(_INSTALLED / "go-v2")],
}
NAMES = tuple(_COMMANDS)


def command(name: str) -> list[str]:
    """Return the command of a client. If the client is not installed, skip the test, or fail it in CI."""
    if not (_INSTALLED / f"{name}.installed").exists():
        reason = f"the official client for {name} is not installed: make clients"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return _COMMANDS[name]
