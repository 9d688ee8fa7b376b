"""Deployment in containers: docker-compose.yml with TLS and tokens, on the Docker engine at DOCKER_HOST."""

import asyncio
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.certificates import Authority, Files
from tests.support.commands import Done
from tests.support.deployment import Deployment, Replica
from tests.support.ports import free_ports
from tests.support.repository import ROOT
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

_FILES = ["docker-compose.yml", "deploy/compose-secured.yaml", "tests/composed/compose.yaml"]
_BASE_IMAGE, _POSTGRES_IMAGE = "python:3.13-slim", "postgres:18"
_LINKS_OPENSSL = 'ldd "$(readlink -f "$(command -v postgres)")" | grep -q libssl'
_ADMIN = (
    "exec 3<>/dev/tcp/127.0.0.1/9901 && "
    "printf 'GET %s HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' \"$0\" >&3 && cat <&3"
)


class _Received(socket.socket):
    """Socket that contains a complete response, for http.client."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def makefile(self, *_: Any, **__: Any) -> Any:
        self.close()
        return io.BytesIO(self._data)


class Compose:
    """`docker compose` with its own project and ports."""

    def __init__(self, folder: Path, *, files: Sequence[str] = _FILES, project: str = f"backups-test-{os.getpid()}") -> None:
        self.port, self.tls_port, self.postgres_port = free_ports(3)
        self._environment = os.environ | {
            "COMPOSE_PROJECT_NAME": project,
            "COMPOSE_FILE": ":".join(files),
            "BACKUPS_PORT": str(self.port),
            "BACKUPS_TLS_ADDRESS": f"127.0.0.1:{self.tls_port}",
            "BACKUPS_POSTGRES_PORT": str(self.postgres_port),
            "BACKUPS_CREDENTIALS": str(folder),
            "BACKUPS_PUBLIC_HOST": "localhost",
            "BACKUPS_PUBLIC_PORT": str(self.tls_port),
            "BACKUPS_CA_FILE": str(folder / "authority.crt"),
            "BACKUPS_JWT_ISSUER": ISSUER,
            "BACKUPS_JWT_AUDIENCE": AUDIENCE,
        }

    async def choose_postgres(self) -> None:
        """Use an image with Debian's PostgreSQL if PostgreSQL's own image was built without TLS."""
        image = self._environment.setdefault("POSTGRES_IMAGE", _POSTGRES_IMAGE)
        if (await self.docker("run", "--rm", "--entrypoint", "sh", image, "-c", _LINKS_OPENSSL)).status:
            base = f"BASE={self._environment.get('BASE_IMAGE', _BASE_IMAGE)}"
            built = await self.docker("build", "--tag", "backups-test-postgres", "--build-arg", base, "tests/composed/postgres")
            assert built.status == 0, built.stderr[-3000:]
            self._environment["POSTGRES_IMAGE"] = "backups-test-postgres"

    def engine_variables(self) -> dict[str, str]:
        """Return the variables that select the engine, the project, its ports and its images."""
        names = (
            "DOCKER_HOST",
            "COMPOSE_PROJECT_NAME",
            "BACKUPS_PORT",
            "BACKUPS_TLS_ADDRESS",
            "BASE_IMAGE",
            "POSTGRES_IMAGE",
            "ENVOY_IMAGE",
        )
        config = self._environment.get("DOCKER_CONFIG", str(Path.home() / ".docker"))
        return {name: self._environment[name] for name in names if name in self._environment} | {"DOCKER_CONFIG": config}

    async def passwords(self) -> dict[str, str]:
        """Return the generated password of each role, and of the superuser."""
        script = "cut -d: -f4,5 /run/secrets/*/pgpass; printf 'postgres:%s' \"$(cat /run/secrets/postgres/superuser)\""
        words = (await self.run("exec", "-T", "postgres", "sh", "-c", script)).replace(":", " ").split()
        return dict(zip(words[::2], words[1::2], strict=True))

    async def docker(self, *arguments: str, stdin: bytes = b"") -> Done:
        """Run `docker` with these arguments and wait for it."""
        done = await asyncio.to_thread(
            subprocess.run, ["docker", *arguments], cwd=ROOT, env=self._environment, input=stdin, capture_output=True, check=False
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    async def run(self, *arguments: str, stdin: bytes = b"") -> str:
        """Return the standard output of `docker compose`, which must succeed."""
        done = await self.docker("compose", *arguments, stdin=stdin)
        assert done.status == 0, f"docker compose {' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    async def started(self, service: str) -> str:
        """Return the time at which the only container of a service started last."""
        done = await self.docker(
            "inspect", "--format", "{{.State.StartedAt}}", *(await self.run("ps", "--all", "--quiet", service)).split()
        )
        assert done.status == 0, done.stderr
        return done.stdout

    async def read_admin(self, path: str) -> Any:
        """Return the JSON document at a path of Envoy's admin interface."""
        answer = await self.run("exec", "-T", "envoy", "bash", "-c", _ADMIN, path)
        response = http.client.HTTPResponse(_Received(answer.encode()))
        response.begin()
        return json.load(response)


class Container(Replica):
    """One container of the service."""

    def __init__(self, compose: Compose, name: str) -> None:
        self._compose, self._name = compose, name
        self._log: list[dict[str, Any]] = []

    async def stop(self, number: int = signal.SIGTERM) -> int:
        await self._docker("kill", "--signal", signal.Signals(number).name, self._name)
        return int(await self._docker("wait", self._name))

    async def start(self) -> None:
        await self._docker("start", self._name)

    def log(self) -> list[dict[str, Any]]:
        done = subprocess.run(["docker", "logs", self._name], capture_output=True, check=True)
        return [json.loads(line) for line in done.stderr.decode().splitlines()]

    def check_runs(self) -> None:
        done = subprocess.run(["docker", "inspect", "--format", "{{.State.Running}}", self._name], capture_output=True, check=True)
        assert done.stdout.strip() == b"true"

    async def _docker(self, *arguments: str) -> str:
        done = await self._compose.docker(*arguments)
        assert done.status == 0, done.stderr
        return done.stdout.strip()


class ContainerPostgres:
    """URLs of the PostgreSQL container."""

    def __init__(self, port: int, passwords: dict[str, str]) -> None:
        self._port, self._passwords = port, passwords

    def url(self, database: str, *, user: str = "backups_owner") -> str:
        return f"postgresql://{user}:{self._passwords[user]}@127.0.0.1:{self._port}/{database}?sslmode=require"


@contextlib.asynccontextmanager
async def composed() -> AsyncIterator[tuple[Compose, Deployment]]:
    """Start the deployment, yield it, and remove it with its volumes."""
    with tempfile.TemporaryDirectory(prefix="backups-composed-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the users of the containers must be able to read it
        (folder / "tls").mkdir()
        (folder / "jwks").mkdir()
        authority, issuer, certificate = Authority(), Issuer("main"), Files(folder / "tls")
        certificate.write(authority.pair("first"))
        (folder / "authority.crt").write_bytes(authority.cert)
        (folder / "jwks" / "jwks.json").write_bytes(issuer.jwks())
        compose = Compose(folder)
        try:
            await compose.choose_postgres()
            await compose.run("up", "--build", "--wait", "--wait-timeout", "300", "--quiet-pull")
            names = (await compose.run("ps", "--format", "{{.Name}}", "service")).split()
            replicas: list[Replica] = [Container(compose, each) for each in names]
            yield compose, Deployment(replicas, compose.port, compose.tls_port, authority, certificate, issuer, compose.read_admin)
        finally:
            await compose.run("--profile", "tools", "down", "--volumes", "--remove-orphans", "--timeout", "30")
