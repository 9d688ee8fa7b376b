"""The files of compose that no other test starts, as `docker compose` itself reads them."""

import asyncio
import json
import os
import shutil
import subprocess
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.support.repository import ROOT


def _composed(*files: str) -> dict[str, Any]:
    command = ["docker", "compose", *(part for file in files for part in ("--file", file)), "--profile", "*", "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["services"])


def _has_compose() -> bool:
    found = shutil.which("docker")
    return found is not None and subprocess.run([found, "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _has_compose(), reason="docker compose is not installed")
async def test_patroni() -> None:
    """Every command of ours knows both nodes, which differ by their names alone, and waits for both."""
    services = await asyncio.to_thread(_composed, "docker-compose.yml", "deploy/compose-patroni.yaml")
    for name in ("migrate", "service", "cli"):
        url = urlsplit(services[name]["environment"]["BACKUPS_DATABASE_URL"])
        assert url.netloc.rpartition("@")[2] == "postgres,postgres-2"
        assert url.query == "target_session_attrs=read-write&sslmode=disable"
    assert {"postgres", "postgres-2"} <= set(services["migrate"]["depends_on"])
    alike: list[dict[str, str]] = []
    for name in ("postgres", "postgres-2"):
        settings = services[name]["environment"]
        settings.pop("POSTGRES_PASSWORD", None)  # of the image's own start, whose place Patroni takes
        own = {key: settings.pop(f"PATRONI_{key}") for key in ("NAME", "RESTAPI_CONNECT_ADDRESS", "POSTGRESQL_CONNECT_ADDRESS")}
        assert own == {"NAME": name, "RESTAPI_CONNECT_ADDRESS": f"{name}:8008", "POSTGRESQL_CONNECT_ADDRESS": f"{name}:5432"}
        alike.append(settings)
    assert alike[0] == alike[1]


def test_patroni_leaves_time_to_step_down() -> None:
    """A leader that cannot reach etcd has stepped down before its lock runs out: Patroni's own rule for these three."""
    dcs = yaml.safe_load((ROOT / "deploy" / "patroni" / "patroni.yaml").read_text(encoding="utf-8"))["bootstrap"]["dcs"]
    assert dcs["loop_wait"] + 2 * dcs["retry_timeout"] <= dcs["ttl"]
