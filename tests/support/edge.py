"""Additional Envoys in front of the replicas of a deployment, with edited copies of deploy/envoy.yaml."""

import contextlib
import json
import tempfile
import urllib.parse
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.deployment import Deployment, ReplicaProcess, configuration, fetch, running_envoy
from tests.support.eventually import eventually
from tests.support.ports import free_ports


class Edge(NamedTuple):
    """One Envoy; `port` is plaintext."""

    port: int
    tls_port: int
    admin_port: int
    log: Path
    """File with the access log and the log of Envoy itself."""

    def stat(self, name: str) -> int:
        """Return one of Envoy's counters or gauges."""
        found = fetch(f"http://127.0.0.1:{self.admin_port}/stats?format=json&filter={urllib.parse.quote('^' + name + '$')}").body
        return int(next(stat["value"] for stat in found["stats"] if "name" in stat))

    def peers(self) -> list[str]:
        """Return the client addresses of the access log, without ports."""
        return [line["peer"].rpartition(":")[0] for line in self._access_log()]

    def paths(self) -> list[str]:
        """Return the requested paths of the access log."""
        return [line["path"] for line in self._access_log()]

    def _access_log(self) -> list[dict[str, Any]]:
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def replaced(old: str, new: str) -> Callable[[str], str]:
    """Return an edit of deploy/envoy.yaml that replaces all occurrences of `old`, of which there is at least one."""

    def edit(text: str) -> str:
        assert old in text, f"deploy/envoy.yaml does not contain {old!r}"
        return text.replace(old, new)

    return edit


@contextlib.asynccontextmanager
async def edge(deployment: Deployment, *edits: Callable[[str], str]) -> AsyncIterator[Edge]:
    """Run an Envoy with the edited configuration until the context is left."""
    port, tls_port, admin_port, metrics_port = free_ports(4)
    upstreams = [replica.port for replica in deployment.replicas if isinstance(replica, ReplicaProcess)]
    with tempfile.TemporaryDirectory(prefix="backups-edge-") as name:
        folder = Path(name)
        certificate = deployment.authority.pair("edge")
        (folder / "tls.crt").write_bytes(certificate.cert)
        (folder / "tls.key").write_bytes(certificate.key)
        ports = {"port": port, "tls_port": tls_port, "admin_port": admin_port, "metrics_port": metrics_port}
        found = Edge(port, tls_port, admin_port, folder / "envoy.log")
        with running_envoy(folder, configuration(upstreams, folder, *edits, **ports)):
            healthy = "cluster.service.membership_healthy"
            await eventually(lambda: found.stat(healthy), len(upstreams), timeout_s=30, retried=(OSError, StopIteration))
            yield found
