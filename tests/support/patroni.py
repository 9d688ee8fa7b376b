"""High availability for tests: etcd, and two Patroni nodes with the embedded PostgreSQL that can be disconnected from etcd."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import yaml

from service.dev.embedded_postgres import EmbeddedPostgres, server_user
from service.postgres.migration import Roles, migrate
from tests.support.commands import environment
from tests.support.debian import debian_program
from tests.support.eventually import eventually
from tests.support.ports import free_ports
from tests.support.proxy import Proxy, proxied
from tests.support.repository import ROOT

TTL_S = 20
"""Seconds until the lock of a lost leader expires: the minimum of Patroni, and the value of deploy/patroni/patroni.yaml."""

_UP = ("running", "streaming")


class Node:
    """Patroni and its PostgreSQL."""

    def __init__(self, name: str, folder: Path, *, ports: tuple[int, int], etcd: Proxy) -> None:
        self.name = name
        self.port, self.rest_port = ports
        self.etcd = etcd
        """The only connection to etcd."""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        (folder / "patroni.yaml").write_text(yaml.safe_dump(self._configuration()), encoding="utf-8")
        shutil.chown(folder, server_user().pw_uid)

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "patroni", str(self._folder / "patroni.yaml")]
            self._process = subprocess.Popen([*_as_server_user(), *command], cwd="/", env=environment(), stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill Patroni and PostgreSQL with SIGKILL."""
        if self._process:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self._folder / "data" / "postmaster.pid").read_text().split("\n", 1)[0]), signal.SIGKILL)

    def tail(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-3000:]

    def _configuration(self) -> dict[str, Any]:
        """Return deploy/patroni/patroni.yaml with the addresses and folders of this node."""
        listen, rest = f"127.0.0.1:{self.port}", f"127.0.0.1:{self.rest_port}"
        shared: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "patroni" / "patroni.yaml").read_text(encoding="utf-8"))
        del shared["bootstrap"]["post_bootstrap"]  # it sets passwords, which these nodes do not use
        return shared | {
            "name": self.name,
            "restapi": {"listen": rest, "connect_address": rest},
            "etcd3": {"hosts": [f"127.0.0.1:{self.etcd.port}"], "use_proxies": True},  # do not discover etcd's own address
            "postgresql": shared["postgresql"]
            | {
                "listen": listen,
                "connect_address": listen,
                "data_dir": str(self._folder / "data"),
                "bin_dir": str(EmbeddedPostgres(self._folder).program("postgres").parent),
                "pgpass": str(self._folder / "pgpass"),
                "authentication": {role: {"username": "postgres"} for role in ("superuser", "replication", "rewind")},
                "parameters": {"unix_socket_directories": "", "shared_buffers": "32MB"},
                "pg_hba": [f"host {database} all 127.0.0.1/32 trust" for database in ("all", "replication")],
            },
        }


class Cluster:
    """Two nodes, one of which is the leader."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def url(self, attributes: str, *, user: str = "postgres") -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://{user}@{hosts}/postgres?target_session_attrs={attributes}"

    async def leader(self) -> Node:
        """Wait for a node that Patroni reports as the primary, and return it."""
        return await eventually(self._find_leader, lambda node: node is not None, timeout_s=60, period_s=0.2)

    async def _find_leader(self) -> Any:
        for node in self.nodes:
            if await _get(node, "/primary"):
                return node
        return None

    async def settled(self) -> None:
        """Wait for a leader with a synchronous standby."""
        try:
            await eventually(self._is_settled, True, timeout_s=60, period_s=0.2)
        except AssertionError:
            raise AssertionError("\n".join(node.tail() for node in self.nodes)) from None

    async def _is_settled(self) -> bool:
        seen = [await _get(node, "/cluster") for node in self.nodes]
        roles = [sorted(member["role"] for member in each["members"] if member["state"] in _UP) for each in seen if each]
        return roles == [["leader", "sync_standby"]] * len(self.nodes)

    async def switch_over(self) -> None:
        """Make the other node the leader, as planned maintenance does."""
        leader = await self.leader()
        request = urllib.request.Request(
            f"http://127.0.0.1:{leader.rest_port}/switchover", data=json.dumps({"leader": leader.name}).encode()
        )
        await asyncio.to_thread(_answer, request)


async def _get(node: Node, path: str) -> Any:
    """Return the response of a node's REST API, or None if it is an error or there is none."""
    try:
        return await asyncio.to_thread(_answer, urllib.request.Request(f"http://127.0.0.1:{node.rest_port}{path}"))
    except (OSError, ValueError):
        return None


def _answer(request: urllib.request.Request) -> Any:
    with urllib.request.urlopen(request, timeout=30) as response:
        text = response.read().decode()
    return json.loads(text) if text.startswith("{") else text or True


def _as_server_user() -> list[str]:
    """Return a prefix for commands that must not run as root; they can still read files of root, such as a Python in its home."""
    user = server_user()
    if os.getuid() == user.pw_uid:
        return []
    capability = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *capability]


@contextlib.asynccontextmanager
async def _etcd(folder: Path) -> AsyncIterator[Path]:
    """Run etcd, and yield its socket."""
    program = debian_program("etcd")
    assert program
    client, peer = "unix://client:1", "unix://peer:1"  # relative names of sockets; etcd requires a port in each address
    addresses = {
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
        "data-dir": "data",
    }
    command = [program, *(f"--{name}={value}" for name, value in addresses.items())]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log)
    try:
        await eventually((folder / "client:1").exists, True, timeout_s=30)
        yield folder / "client:1"
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def patroni_cluster() -> AsyncIterator[Cluster]:
    """Run etcd and both nodes with the service's schema and roles."""
    ports = free_ports(4)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backups-patroni-", dir="/tmp")))
        folder.chmod(0o755)
        (folder / "etcd").mkdir()
        etcd = await stack.enter_async_context(_etcd(folder / "etcd"))
        nodes = []
        for number, each in enumerate((ports[:2], ports[2:]), 1):
            proxy = await stack.enter_async_context(proxied(etcd))
            node = Node(f"node-{number}", folder / f"node-{number}", ports=(each[0], each[1]), etcd=proxy)
            stack.callback(node.kill)
            node.start()
            nodes.append(node)
        cluster = Cluster(nodes)
        await cluster.settled()
        connection = await asyncpg.connect(cluster.url("read-write"))
        for role in Roles():
            await connection.execute(f"CREATE ROLE {role} LOGIN")
        await connection.close()
        await asyncio.to_thread(migrate, cluster.url("read-write"), roles=Roles())
        yield cluster
