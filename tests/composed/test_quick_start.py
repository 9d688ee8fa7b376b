"""The commands of docs/quick-start-secured.md, on the Docker engine at DOCKER_HOST."""

import os
import re
import shlex
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.composed.containers import Compose
from tests.support.quick_start import run_all
from tests.support.repository import ROOT

pytestmark = pytest.mark.timeout(900)  # the first test builds the images


@pytest.fixture(name="compose")
async def _compose() -> AsyncIterator[Compose]:
    """Start the deployment without TLS as in README, with `docker compose up`, and remove it after the test."""
    if "DOCKER_HOST" not in os.environ:
        pytest.skip("DOCKER_HOST is not set")
    with tempfile.TemporaryDirectory(prefix="backups-quick-start-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        compose = Compose(Path(name), files=["docker-compose.yml"], project=f"backups-quick-start-{os.getpid()}")
        try:
            await compose.choose_postgres()
            await compose.run("up", "--build", "--wait", "--wait-timeout", "300", "--quiet-pull")
            yield compose
        finally:
            await compose.run("--profile", "tools", "down", "--volumes", "--remove-orphans", "--timeout", "30")


async def test_quick_start(compose: Compose) -> None:
    """The commands of the quick start replace the deployment without TLS by one with TLS, which keeps the volumes, and list the sample.

    The command of docs/uninstalling.md then leaves neither containers nor volumes.
    """
    with tempfile.TemporaryDirectory(prefix="backups-quick-start-", dir="/tmp") as home:
        printed = await run_all(Path(home), **compose.engine_variables())
    assert "Imported cluster demo-cluster into folder demo-folder: 4 added" in printed
    assert printed.splitlines()[-4].split()[:2] == ["c9q3vd0k8m1nt5rj2hfe", "demo-cluster"]
    uninstalling = (ROOT / "docs" / "uninstalling.md").read_text(encoding="utf-8")
    [command] = re.findall(r"`docker (compose --profile '\*' down)`; with `--volumes`", uninstalling)
    await compose.docker(*shlex.split(command), "--volumes", "--timeout", "30")
    of_project = ("--filter", f"label=com.docker.compose.project={compose.engine_variables()['COMPOSE_PROJECT_NAME']}")
    for listing in (("ps", "--all"), ("volume", "ls")):
        assert (await compose.docker(*listing, "--quiet", *of_project)).stdout == ""
