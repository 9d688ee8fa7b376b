"""The deployment as processes: PostgreSQL, replicas of the service, and Envoy in front, started from the very file that compose runs.

Over TLS, and with tokens, as in production.
"""

import abc
import asyncio
import contextlib
import json
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import yaml

from tests.support.certificates import Authority, Files
from tests.support.commands import environment
from tests.support.ports import free_ports
from tests.support.repository import ROOT
from tests.support.tokens import AUDIENCE, ISSUER, Issuer


class Reply(NamedTuple):
    """An answer over HTTP."""

    status: int
    headers: dict[str, str]
    body: Any


class Replica(abc.ABC):
    """One server of the deployment."""

    @abc.abstractmethod
    async def end(self, number: int = signal.SIGTERM) -> int:
        """Sends it a signal; gives its exit status once it has ended."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Starts it, without waiting for more."""

    @abc.abstractmethod
    def log(self) -> list[dict[str, Any]]:
        """What it has logged, over restarts."""

    @abc.abstractmethod
    def check_runs(self) -> None:
        """Raises where it has ended by itself."""

    async def restart(self, number: int) -> None:
        """Ends it, starts it again, and waits until it serves."""
        served = self._times("serving")
        status = await self.end(number)
        assert status == 0 or number == signal.SIGKILL
        await self.start()
        await self.serving(served)

    async def serving(self, times: int = 0) -> None:
        """Waits until it has begun to serve more than so many times."""
        async with asyncio.timeout(60):
            while self._times("serving") <= times:
                self.check_runs()
                await asyncio.sleep(0.05)

    def calls(self) -> int:
        """How many calls it has answered well."""
        return sum(line["event"] == "call" and line["code"] == "OK" and "health" not in line["method"] for line in self.log())

    def _times(self, event: str) -> int:
        return sum(line["event"] == event for line in self.log())


class ReplicaProcess(Replica):
    """One `serve`, on a port that stays its own over restarts."""

    def __init__(self, port: int, settings: dict[str, str], log: Path) -> None:
        self.port = port
        self.release = ROOT
        """Whose code the next start runs."""
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._log, self._read = log, 0
        self._lines: list[dict[str, Any]] = []

    async def start(self) -> None:
        with self._log.open("ab") as log:  # an unread pipe would block the replica
            # Not by asyncio: uvloop forks, and gRPC, which carries the test's load in this process, does not survive that.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve"],
                cwd=self.release,
                env=environment(**self._settings, BACKUPS_LISTEN=f"127.0.0.1:{self.port}"),
                stderr=log,
            )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["ReplicaProcess"]:
        """Starts it; where it has not ended when this is left, it is killed."""
        await self.start()
        try:
            yield self
        finally:
            await self.end(signal.SIGKILL)

    async def end(self, number: int = signal.SIGTERM) -> int:
        assert self._process
        self._process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process
        return await asyncio.to_thread(self._process.wait, 30)

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, if it has ended."""
        return self._process.poll() if self._process else None

    def check_runs(self) -> None:
        assert self._process
        assert self._process.poll() is None, self._log.read_text(encoding="utf-8")[-2000:]

    def log(self) -> list[dict[str, Any]]:
        """See `Replica`; each line is read once, since this is asked while the load of the same process goes on."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            whole = log.read().rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        self._lines += [json.loads(line) for line in whole.splitlines() if line.endswith(b"}")]
        return self._lines


@dataclass
class Deployment:
    """Replicas behind Envoy."""

    replicas: list[Replica]
    port: int
    """Envoy's, in plaintext."""
    tls_port: int
    authority: Authority
    """Of Envoy's certificate."""
    certificate: Files
    """Envoy's, which it follows."""
    issuer: Issuer
    """Of tokens."""
    read_admin: Callable[[str], Awaitable[Any]]
    """Asks Envoy's admin interface for a path that it answers in JSON."""
    describe: Callable[[], str] = str
    """Return the state of its processes, for the message of a timeout."""
    metrics_address: str = ""
    """Where Envoy answers scrapes, if that can be reached."""
    envoy_pid: int = 0
    """Envoy's process, if it runs on this machine."""

    def token(self, *folders: str) -> str:
        """A token for these folders, or for all."""
        return self.issuer.token(next(iter(self.issuer.keys)), folders=list(folders) or ["*"])

    def channel(self, token: str | None = None) -> grpc.aio.Channel:
        """A connection of its own, over TLS and with a token, that retries nothing."""
        tls = grpc.ssl_channel_credentials(self.authority.cert)
        credentials = grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(token or self.token()))
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(f"localhost:{self.tls_port}", credentials, options=options)

    async def rest(self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> Reply:
        """Asks the REST API, over TLS and with a token."""
        headers = {"authorization": f"Bearer {self.token()}"} | (headers or {})
        context = ssl.create_default_context(cadata=self.authority.cert.decode())
        return await asyncio.to_thread(fetch, f"https://localhost:{self.tls_port}{path}", method, headers, context)

    async def stats(self, prefix: str) -> dict[str, int]:
        """Envoy's counters and gauges of these names."""
        answer = await self.read_admin(f"/stats?format=json&filter={urllib.parse.quote('^' + prefix)}")
        return {stat["name"]: stat["value"] for stat in answer["stats"] if "name" in stat}

    async def settled(self) -> None:
        """Waits until every replica has been sent a call since: Envoy's own gauges are ahead of what its workers do."""
        before = [replica.calls() for replica in self.replicas]
        async with asyncio.timeout(60):
            while any(replica.calls() <= earlier for replica, earlier in zip(self.replicas, before, strict=True)):
                await self.rest("/managed-greenplum/v1/backups?folderId=settling")
                await asyncio.sleep(0.02)

    async def until_healthy(self, count: int) -> None:
        """Waits until Envoy has found so many replicas healthy."""
        healthy: object = None
        until = time.monotonic() + 60
        while healthy != count:
            assert time.monotonic() < until, f"{healthy} healthy\n{self.describe()}"
            await asyncio.sleep(0.05)
            try:
                healthy = (await self.stats("cluster.service.membership_healthy"))["cluster.service.membership_healthy"]
            except (OSError, KeyError) as exc:
                healthy = exc


def fetch(
    url: str, method: str = "GET", headers: dict[str, str] | None = None, tls: ssl.SSLContext | None = None, body: bytes | None = None
) -> Reply:
    """Make one HTTP request."""
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20, context=tls) as response:
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
async def deployed(
    database_url: str,
    *,
    replicas: int = 2,
    issuer: Issuer | None = None,
    max_connections: int | None = None,
    release: Path = ROOT,
    edit_envoy: Callable[[dict[str, Any]], None] = lambda config: None,
    **settings: str,
) -> AsyncIterator[Deployment]:
    """Start the whole deployment, and stop it on exit.

    Args:
        max_connections: Envoy's limit of client connections, if not the one of deploy/envoy.yaml.
        release: The folder of the code that the replicas run.
        edit_envoy: Changes Envoy's configuration in place.
    """
    port, tls_port, admin_port, metrics_port, *ports = free_ports(4 + replicas)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backups-deployed-")))
        authority, issuer, certificate = Authority(), issuer or Issuer("main"), Files(folder)
        certificate.write(authority.pair("first"))
        jwks = folder / "jwks.json"
        jwks.write_bytes(issuer.jwks())
        settings = {
            "BACKUPS_DATABASE_URL": database_url,
            "BACKUPS_PUBLIC_ADDRESS": f"localhost:{tls_port}",
            "BACKUPS_DRAIN_DELAY": "4",
            "BACKUPS_AUTH": "jwt",
            "BACKUPS_JWKS": str(jwks),
            "BACKUPS_JWT_ISSUER": ISSUER,
            "BACKUPS_JWT_AUDIENCE": AUDIENCE,
        } | settings
        running = [ReplicaProcess(each, settings, folder / f"{each}.log") for each in ports]
        for replica in running:
            replica.release = release
            await replica.start()
            stack.push_async_callback(replica.end, signal.SIGKILL)
        config = configuration(ports, folder, port=port, tls_port=tls_port, admin_port=admin_port, metrics_port=metrics_port)
        if max_connections:
            monitor = config["overload_manager"]["resource_monitors"][0]
            monitor["typed_config"]["max_active_downstream_connections"] = max_connections
        edit_envoy(config)
        envoy = stack.enter_context(running_envoy(folder, config))

        async def read_admin(path: str) -> Any:
            return (await asyncio.to_thread(fetch, f"http://127.0.0.1:{admin_port}{path}")).body

        def describe() -> str:
            logs = {log.name: log.read_text(encoding="utf-8")[-1000:] for log in folder.glob("*.log")}
            return "\n".join(
                (f"Envoy: {envoy.poll()}", *(f"{each.port}: {each.status}" for each in running), *map(": ".join, logs.items()))
            )

        deployment = Deployment(
            [*running],
            port,
            tls_port,
            authority,
            certificate,
            issuer,
            read_admin,
            describe,
            metrics_address=f"127.0.0.1:{metrics_port}",
            envoy_pid=envoy.pid,
        )
        await deployment.until_healthy(replicas)
        await deployment.settled()
        yield deployment


def configuration(
    ports: list[int], folder: Path, *edits: Callable[[str], str], port: int, tls_port: int, admin_port: int, metrics_port: int
) -> dict[str, Any]:
    """Return deploy/envoy.yaml with other addresses and the given edits of its text; the certificate's files are in `folder`."""
    text = (ROOT / "deploy" / "envoy.yaml").read_text(encoding="utf-8")
    for edit in edits:
        text = edit(text)
    config: dict[str, Any] = yaml.safe_load(text)
    config["admin"]["address"]["socket_address"]["port_value"] = admin_port
    for listener, number in zip(config["static_resources"]["listeners"], (port, tls_port, metrics_port), strict=True):
        listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": number}
    clusters = {cluster["name"]: cluster["load_assignment"]["endpoints"][0] for cluster in config["static_resources"]["clusters"]}
    clusters["service"]["lb_endpoints"] = [_endpoint(each) for each in ports]
    clusters["admin"]["lb_endpoints"] = [_endpoint(admin_port)]
    secret = (ROOT / "deploy" / "envoy-certificate.yaml").read_text(encoding="utf-8").replace("/etc/envoy/tls", str(folder))
    (folder / "envoy-certificate.yaml").write_text(secret, encoding="utf-8")
    return dict(json.loads(json.dumps(config).replace("/etc/envoy/", f"{folder}/")))


def _endpoint(port: int) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}


def envoy_binary() -> Path:
    spec = find_spec("envoy")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "_bin" / "envoy"


@contextlib.contextmanager
def running_envoy(folder: Path, config: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    file = folder / "envoy.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    with (folder / "envoy.log").open("wb") as log:
        command = [str(envoy_binary()), "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)
