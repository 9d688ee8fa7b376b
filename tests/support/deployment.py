"""The deployment as processes: replicas of the service behind Envoy, with deploy/envoy.yaml, TLS and tokens, as in production.

The caller provides PostgreSQL.
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

from service import pb
from tests.support.certificates import Authority, Files
from tests.support.commands import unmeasured_environment
from tests.support.eventually import eventually
from tests.support.ports import free_ports
from tests.support.repository import ROOT
from tests.support.tokens import AUDIENCE, ISSUER, Issuer


class Reply(NamedTuple):
    """An HTTP response; the body is decoded if it is JSON."""

    status: int
    headers: dict[str, str]
    body: Any


class Replica(abc.ABC):
    """One server of the deployment."""

    @abc.abstractmethod
    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait until the server exits, and return its exit status."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Start the server without waiting until it serves."""

    @abc.abstractmethod
    def log(self) -> list[dict[str, Any]]:
        """Return the lines that the server has logged, over all its restarts."""

    @abc.abstractmethod
    def check_runs(self) -> None:
        """Raise AssertionError if the server has exited."""

    async def restart(self, number: int) -> None:
        """Stop the server by a signal, start it again, and wait until it serves."""
        served = self._times("serving")
        status = await self.stop(number)
        assert status == 0 or number == signal.SIGKILL
        await self.start()
        await self.serving(served)

    async def serving(self, times: int = 0) -> None:
        """Wait until the server has logged `serving` more than `times` times."""

        def served() -> int:
            self.check_runs()
            return self._times("serving")

        await eventually(served, lambda count: count > times, timeout_s=60, period_s=0.05)

    def calls(self) -> int:
        """Return the number of calls that the server has answered with OK."""
        return sum(line["event"] == "call" and line["code"] == "OK" and "health" not in line["method"] for line in self.log())

    def _times(self, event: str) -> int:
        return sum(line["event"] == event for line in self.log())


class ReplicaProcess(Replica):
    """A `serve` process that keeps its port over restarts."""

    def __init__(self, port: int, settings: dict[str, str], log: Path) -> None:
        self.port = port
        self.release = ROOT
        """Folder of the code that the next start runs."""
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._log, self._read = log, 0
        self._lines: list[dict[str, Any]] = []

    async def start(self) -> None:
        with self._log.open("ab") as log:  # an unread pipe would block the replica
            # Not asyncio's subprocesses: uvloop forks, which breaks the gRPC clients of this process.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve"],
                cwd=self.release,
                env=unmeasured_environment(**self._settings, BACKUPS_LISTEN=f"127.0.0.1:{self.port}"),  # tests measure time and memory
                stderr=log,
            )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["ReplicaProcess"]:
        """Start the server, and kill it when the context is left."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop(signal.SIGKILL)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        self.send_signal(number)
        return await self.wait()

    async def wait(self) -> int:
        """Wait until the process exits, and return its exit status."""
        assert self._process
        return await asyncio.to_thread(self._process.wait, 30)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        assert self._process
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, or None while the process runs."""
        return self._process.poll() if self._process else None

    def check_runs(self) -> None:
        assert self._process
        assert self._process.poll() is None, self._log.read_text(encoding="utf-8")[-2000:]

    def log(self) -> list[dict[str, Any]]:
        """See `Replica`. Each line is parsed once, to take little time from the load that the same process generates."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            whole = log.read().rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        self._lines += [json.loads(line) for line in whole.splitlines() if line.endswith(b"}")]
        return self._lines


async def until_answered(channel: grpc.aio.Channel) -> None:
    """Wait until a server with authentication answers calls. It accepts them before it has read the signing keys."""
    stub, request = pb.BackupServiceStub(channel), pb.ListBackupsRequest(folder_id="f1")
    await eventually(lambda: stub.List(request, wait_for_ready=True, timeout=30).code(), grpc.StatusCode.OK)


@dataclass
class Deployment:
    """Replicas behind Envoy."""

    replicas: list[Replica]
    port: int
    """Envoy's port for plaintext."""
    tls_port: int
    authority: Authority
    """Signs Envoy's certificate."""
    certificate: Files
    """Files of Envoy's certificate, which Envoy reloads when they change."""
    issuer: Issuer
    """Signs tokens."""
    read_admin: Callable[[str], Awaitable[Any]]
    """Requests a path of Envoy's admin interface that returns JSON."""
    describe: Callable[[], str] = str
    """Returns the state and the logs of the processes, for the message of a timeout."""
    metrics_address: str = ""
    """Address of Envoy's metrics, or empty if tests cannot reach it."""
    envoy_pid: int = 0
    """Process id of Envoy, or 0 in a container."""

    def token(self, *folders: str) -> str:
        """Return a token for these folders, or for all folders."""
        return self.issuer.token(next(iter(self.issuer.keys)), folders=list(folders) or ["*"])

    def channel(self, token: str | None = None) -> grpc.aio.Channel:
        """Return a channel with its own connection over TLS and with a token, without retries."""
        tls = grpc.ssl_channel_credentials(self.authority.cert)
        credentials = grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(token or self.token()))
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(f"localhost:{self.tls_port}", credentials, options=options)

    async def rest(self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> Reply:
        """Make a request to the REST API, over TLS and with a token."""
        headers = {"authorization": f"Bearer {self.token()}"} | (headers or {})
        context = ssl.create_default_context(cadata=self.authority.cert.decode())
        return await asyncio.to_thread(fetch, f"https://localhost:{self.tls_port}{path}", method, headers, context)

    async def stats(self, prefix: str) -> dict[str, int]:
        """Return Envoy's counters and gauges whose names start with `prefix`."""
        response = await self.read_admin(f"/stats?format=json&filter={urllib.parse.quote('^' + prefix)}")
        return {stat["name"]: stat["value"] for stat in response["stats"] if "name" in stat}

    async def settled(self) -> None:
        """Wait until Envoy has forwarded a new call to every replica: its health gauges change before its workers do."""
        before = [replica.calls() for replica in self.replicas]

        async def new_calls() -> list[int]:
            await self.rest("/managed-greenplum/v1/backups?folderId=settling")
            return [replica.calls() - earlier for replica, earlier in zip(self.replicas, before, strict=True)]

        await eventually(new_calls, all, timeout_s=60)

    async def restart_in_turn(self, number: int, *, rounds: int = 1) -> None:
        """Restart the replicas by a signal, one after the other, `rounds` times."""
        for _ in range(rounds):
            for replica in self.replicas:
                await replica.restart(number)
                await self.settled()

    async def until_healthy(self, count: int) -> None:
        """Wait until Envoy reports `count` healthy replicas."""
        gauge = "cluster.service.membership_healthy"

        async def healthy() -> int:
            return (await self.stats(gauge))[gauge]

        try:
            await eventually(healthy, count, timeout_s=60, period_s=0.05, retried=(OSError, KeyError))
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.describe()}") from None


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
    release: Path = ROOT,
    edit_envoy: Callable[[dict[str, Any]], None] = lambda config: None,
    **settings: str,
) -> AsyncIterator[Deployment]:
    """Start the whole deployment, and stop it on exit.

    Args:
        release: the folder of the code that the replicas run.
        edit_envoy: changes Envoy's configuration in place.
    """
    *ports, number, tls, admin, metrics = free_ports(replicas + 4)
    envoy_ports = _EnvoyPorts(number, tls, admin, metrics)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backups-deployed-")))
        keys = _written_keys(folder, issuer or Issuer("main"))
        settings = _settings(database_url, folder, tls) | settings
        running = await stack.enter_async_context(_running_replicas(ports, settings, folder, release))
        config = configuration(ports, folder, **envoy_ports._asdict())
        edit_envoy(config)
        envoy = stack.enter_context(running_envoy(folder, config))
        deployment = _deployment(running, envoy, envoy_ports, folder, keys)
        await deployment.until_healthy(replicas)
        await deployment.settled()
        yield deployment


def limit_connections(limit: int) -> Callable[[dict[str, Any]], None]:
    """Return an edit of Envoy's configuration with another limit of client connections."""

    def edit(config: dict[str, Any]) -> None:
        monitor = config["overload_manager"]["resource_monitors"][0]
        monitor["typed_config"]["max_active_downstream_connections"] = limit

    return edit


class _EnvoyPorts(NamedTuple):
    port: int
    tls_port: int
    admin_port: int
    metrics_port: int


class _Keys(NamedTuple):
    authority: Authority
    certificate: Files
    issuer: Issuer


def _written_keys(folder: Path, issuer: Issuer) -> _Keys:
    """Write Envoy's certificate and the keys of the issuer to the folder."""
    keys = _Keys(Authority(), Files(folder), issuer)
    keys.certificate.write(keys.authority.pair("first"))
    (folder / "jwks.json").write_bytes(issuer.jwks())
    return keys


@contextlib.asynccontextmanager
async def _running_replicas(ports: list[int], settings: dict[str, str], folder: Path, release: Path) -> AsyncIterator[list[ReplicaProcess]]:
    """Start a replica on each port, without waiting until they serve. Their logs are in the folder."""
    async with contextlib.AsyncExitStack() as stack:
        replicas = [ReplicaProcess(port, settings, folder / f"{port}.log") for port in ports]
        for replica in replicas:
            replica.release = release
            await stack.enter_async_context(replica.running())
        yield replicas


def _deployment(
    replicas: list[ReplicaProcess], envoy: "subprocess.Popen[bytes]", ports: _EnvoyPorts, folder: Path, keys: _Keys
) -> Deployment:
    async def read_admin(path: str) -> Any:
        return (await asyncio.to_thread(fetch, f"http://127.0.0.1:{ports.admin_port}{path}")).body

    return Deployment(
        [*replicas],
        ports.port,
        ports.tls_port,
        **keys._asdict(),
        read_admin=read_admin,
        describe=lambda: _describe(folder, envoy, replicas),
        metrics_address=f"127.0.0.1:{ports.metrics_port}",
        envoy_pid=envoy.pid,
    )


def _settings(database_url: str, folder: Path, tls_port: int) -> dict[str, str]:
    """Return the settings of the replicas."""
    return {
        "BACKUPS_DATABASE_URL": database_url,
        "BACKUPS_PUBLIC_ADDRESS": f"localhost:{tls_port}",
        "BACKUPS_DRAIN_DELAY": "4",
        "BACKUPS_AUTH": "jwt",
        "BACKUPS_JWKS": str(folder / "jwks.json"),
        "BACKUPS_JWT_ISSUER": ISSUER,
        "BACKUPS_JWT_AUDIENCE": AUDIENCE,
    }


def _describe(folder: Path, envoy: "subprocess.Popen[bytes]", replicas: list[ReplicaProcess]) -> str:
    """Return the exit statuses of the processes that have ended, and the last lines of the logs."""
    logs = {log.name: log.read_text(encoding="utf-8")[-1000:] for log in folder.glob("*.log")}
    return "\n".join((f"Envoy: {envoy.poll()}", *(f"{each.port}: {each.status}" for each in replicas), *map(": ".join, logs.items())))


def configuration(
    ports: list[int], folder: Path, *edits: Callable[[str], str], port: int, tls_port: int, admin_port: int, metrics_port: int
) -> dict[str, Any]:
    """Return deploy/envoy.yaml with other addresses and the given edits of its text; the certificate's files are in `folder`."""
    text = (ROOT / "deploy" / "envoy.yaml").read_text(encoding="utf-8")
    for edit in edits:
        text = edit(text)
    config: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
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
    """Return the Envoy of the package `envoy`."""
    spec = find_spec("envoy")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "_bin" / "envoy"


@contextlib.contextmanager
def running_envoy(folder: Path, config: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """Run Envoy with a configuration; its files and its log are in `folder`."""
    file = folder / "envoy.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    with (folder / "envoy.log").open("wb") as log:
        command = [str(envoy_binary()), "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
        command += ["--file-flush-interval-msec", "200"]  # by default, the access log is written every ten seconds
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)
