"""The deployment as processes: PostgreSQL, replicas of the service, and Envoy in front, started from the very file that compose runs."""

import asyncio
import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.conftest import ROOT, environment


class Reply(NamedTuple):
    """An answer over HTTP."""

    status: int
    headers: dict[str, str]
    body: Any


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, outside the range that the kernel gives to clients.

    A port within it could be taken by anybody's connection while its replica is down; even by one to itself, since a connection to a
    port that nobody listens on succeeds where it happens to come from that very port.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as each, contextlib.suppress(OSError):
            each.bind(("127.0.0.1", port))
            found.append(port)
    return found


class Replica:
    """One `serve`, on a port that stays its own over restarts."""

    def __init__(self, port: int, settings: dict[str, str], log: Path) -> None:
        self.port = port
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._log = log

    async def start(self) -> None:
        with self._log.open("ab") as log:  # a pipe that nobody reads would hold the replica
            # Not by asyncio: uvloop forks, and gRPC, which carries the test's load in this process, does not survive that.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve"],
                cwd=ROOT,
                env=environment(**self._settings, BACKUPS_LISTEN=f"127.0.0.1:{self.port}"),
                stderr=log,
            )

    async def end(self, number: int = signal.SIGTERM) -> int:
        assert self._process
        self._process.send_signal(number)
        return await asyncio.to_thread(self._process.wait, 30)

    async def restart(self, number: int) -> None:
        """Ends it, starts it again, and waits until it serves."""
        served = self._times("serving")
        await self.end(number)
        await self.start()
        async with asyncio.timeout(30):
            while self._times("serving") == served:
                assert self._process
                assert self._process.poll() is None, self._log.read_text(encoding="utf-8")[-2000:]
                await asyncio.sleep(0.05)

    def calls(self) -> int:
        """How many calls it has answered well."""
        return sum(line["event"] == "call" and line["code"] == "OK" and "health" not in line["method"] for line in self.log())

    def _times(self, event: str) -> int:
        return sum(line["event"] == event for line in self.log())

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


class Deployment:
    """Replicas behind Envoy."""

    def __init__(self, replicas: list[Replica], *, port: int, admin_port: int, metrics_port: int) -> None:
        self.replicas = replicas
        self.address = f"127.0.0.1:{port}"
        self.metrics_address = f"127.0.0.1:{metrics_port}"
        """Where Envoy answers scrapes."""
        self._admin = f"http://127.0.0.1:{admin_port}"

    async def rest(self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> Reply:
        """Asks the REST API."""
        return await asyncio.to_thread(fetch, f"http://{self.address}{path}", method, headers)

    async def stats(self, prefix: str) -> dict[str, int]:
        """Envoy's counters and gauges of these names."""
        reply = await asyncio.to_thread(fetch, f"{self._admin}/stats?format=json&filter={urllib.parse.quote('^' + prefix)}")
        return {stat["name"]: stat["value"] for stat in reply.body["stats"] if "name" in stat}

    async def settled(self) -> None:
        """Waits until every replica has been sent a call since: Envoy's own gauges are ahead of what its workers do."""
        before = [replica.calls() for replica in self.replicas]
        async with asyncio.timeout(30):
            while any(replica.calls() <= earlier for replica, earlier in zip(self.replicas, before, strict=True)):
                await self.rest("/managed-greenplum/v1/backups?folderId=settling")
                await asyncio.sleep(0.02)

    async def until_healthy(self, count: int) -> None:
        """Waits until Envoy has found so many replicas healthy."""
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError, KeyError):
                    if (await self.stats("cluster.service.membership_healthy"))["cluster.service.membership_healthy"] == count:
                        return
                await asyncio.sleep(0.05)


def fetch(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> Reply:
    request = urllib.request.Request(url, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return _reply(response)
    except urllib.error.HTTPError as exc:
        with exc:
            return _reply(exc)


def _reply(response: Any) -> Reply:
    data = response.read()
    headers = {key.lower(): value for key, value in response.headers.items()}
    is_json = headers.get("content-type", "").startswith("application/json")
    return Reply(response.status, headers, json.loads(data) if is_json else data.decode(errors="replace"))


@contextlib.asynccontextmanager
async def deployed(database_url: str, *, replicas: int = 2, **settings: str) -> AsyncIterator[Deployment]:
    """Starts all of it, and ends all of it."""
    port, admin_port, metrics_port, *ports = free_ports(3 + replicas)
    settings = {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_DRAIN_DELAY": "4"} | settings
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backups-replicas-")))
        running = [Replica(each, settings, folder / f"{each}.log") for each in ports]
        deployment = Deployment(running, port=port, admin_port=admin_port, metrics_port=metrics_port)
        for replica in running:
            await replica.start()
            stack.push_async_callback(replica.end, signal.SIGKILL)
        await stack.enter_async_context(_envoy(configuration(ports, port=port, admin_port=admin_port, metrics_port=metrics_port)))
        await deployment.until_healthy(replicas)
        await deployment.settled()
        yield deployment


def configuration(ports: list[int], *, port: int, admin_port: int, metrics_port: int) -> dict[str, Any]:
    """deploy/envoy.yaml with other addresses, and nothing else changed."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "envoy.yaml").read_text(encoding="utf-8"))
    config["admin"]["address"]["socket_address"]["port_value"] = admin_port
    listeners = {listener["name"]: listener for listener in config["static_resources"]["listeners"]}
    listeners["public"]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    listeners["metrics"]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": metrics_port}
    clusters = {cluster["name"]: cluster["load_assignment"]["endpoints"][0] for cluster in config["static_resources"]["clusters"]}
    clusters["service"]["lb_endpoints"] = [_endpoint(each) for each in ports]
    clusters["admin"]["lb_endpoints"] = [_endpoint(admin_port)]
    return config


def _endpoint(port: int) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}


def envoy_binary() -> Path:
    spec = find_spec("envoy")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "_bin" / "envoy"


@contextlib.asynccontextmanager
async def _envoy(config: dict[str, Any]) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory(prefix="backups-envoy-") as folder:
        file = Path(folder, "envoy.json")
        file.write_text(json.dumps(config), encoding="utf-8")
        with Path(folder, "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(envoy_binary(), "-c", file, "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"),
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
            try:
                yield
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await asyncio.wait_for(process.wait(), 30)
