"""Health checks of Envoy's containers. They run against processes only, because the tests in containers have no second Envoy."""

import asyncio
import signal

import yaml

from tests.support import processes
from tests.support.deployment import Deployment, fetch
from tests.support.edge import edge
from tests.support.eventually import eventually
from tests.support.repository import ROOT

_BACKUPS = "/managed-greenplum/v1/backups"


def _health_check(file: str, port: str, actual: int) -> list[str]:
    """Return the command of Envoy's health check in a Compose file, with the actual port."""
    kind, *command = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["services"]["envoy"]["healthcheck"]["test"]
    assert kind == "CMD"
    assert port in command[-1]
    return [part.replace(port, str(actual)) for part in command]


async def test_health_checks_of_containers(deployment: Deployment) -> None:
    """Envoy is healthy while a replica is, with TLS only if TLS works; a check calls no replica and is not in Envoy's access log."""
    async with edge(deployment) as envoy:
        plaintext = _health_check("docker-compose.yml", "8080", envoy.port)
        tls = _health_check("deploy/compose-secured.yaml", "8443", envoy.tls_port)
        no_tls = _health_check("deploy/compose-secured.yaml", "8443", envoy.port)

        async def statuses() -> list[int]:
            return [(await processes.run(*command)).returncode for command in (plaintext, tls, no_tls)]

        async def get(path: str) -> int:
            return (await asyncio.to_thread(fetch, f"http://127.0.0.1:{envoy.port}{path}")).status

        before = [len(replica.log()) for replica in deployment.replicas]
        assert await statuses() == [0, 0, 1]
        assert await get("/healthz") == 200
        assert [len(replica.log()) for replica in deployment.replicas] == before
        for replica in deployment.replicas:
            await replica.stop(signal.SIGKILL)
        await eventually(statuses, [1, 1, 1], timeout_s=30)
        assert await get("/healthz") == 503
        assert await get(_BACKUPS) == 503
        assert "/healthz" not in await eventually(envoy.paths, lambda paths: _BACKUPS in paths, timeout_s=30)
