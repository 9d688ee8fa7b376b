"""Compose files as `docker compose config` resolves them, and the generated secrets of their containers."""

import asyncio
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from service.settings import Settings
from tests.support.certificates import handshake
from tests.support.monitoring import DASHBOARDS, PROMETHEUS
from tests.support.repository import ROOT


def _composed(*files: str, **variables: str) -> dict[str, Any]:
    """Return the merged Compose files, with all profiles, the required variables, and `variables`."""
    command = ["docker", "compose", *(part for file in files for part in ("--file", file)), "--profile", "*", "config", "--format", "json"]
    needed = ("CREDENTIALS", "PUBLIC_HOST", "JWT_ISSUER", "JWT_AUDIENCE")
    environment = (
        {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        | {f"BACKUPS_{name}": "/x" for name in needed}
        | variables
    )
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def _has_compose() -> bool:
    found = shutil.which("docker")
    return found is not None and subprocess.run([found, "compose", "version"], capture_output=True, check=False).returncode == 0


_with_compose = pytest.mark.skipif(not _has_compose(), reason="docker compose is not installed")
_BASE = ("docker-compose.yml",)
_PATRONI = ("docker-compose.yml", "deploy/compose-patroni.yaml")
_SECURED = ("docker-compose.yml", "deploy/compose-secured.yaml")
_OVERLAYS = [_BASE, _PATRONI, _SECURED]
_overlays = pytest.mark.parametrize("files", _OVERLAYS, ids=["development", "patroni", "secured"])


@_with_compose
@_overlays
async def test_containers_are_confined(files: tuple[str, ...]) -> None:
    """Every container has a read-only file system, no capability, `no-new-privileges`, limits, and an image with a fixed version."""
    for name, service in (await asyncio.to_thread(_composed, *files))["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert not service.get("cap_add"), name
        assert not service.get("privileged"), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name
        assert "build" in service or re.fullmatch(r".+:v?\d+(\.\d+)*", service["image"]), name


@_with_compose
@_overlays
async def test_networks(files: tuple[str, ...]) -> None:
    """PostgreSQL and etcd publish no port and are only on internal networks, which only their clients share."""
    composed = await asyncio.to_thread(_composed, *files)
    internal = {name for name, network in composed["networks"].items() if network.get("internal")}
    members: dict[str, set[str]] = {}
    for name, service in composed["services"].items():
        for network in service.get("networks") or {}:
            members.setdefault(network, set()).add(name)
    nodes = {"postgres", "postgres-2"} & set(composed["services"])
    for name in nodes | ({"etcd"} & set(composed["services"])):
        assert set(composed["services"][name]["networks"]) <= internal
        assert "ports" not in composed["services"][name]
    assert members["database"] == nodes | {"migrate", "service", "cli"}
    assert members["edge"] == {"service", "envoy", "cli", "prometheus"}
    assert members.get("etcd", {"etcd"}) == (nodes | {"etcd"} if "etcd" in composed["services"] else {"etcd"})
    assert composed["services"]["secrets"]["network_mode"] == "none"


@_with_compose
@_overlays
async def test_each_container_has_only_its_own_password(files: tuple[str, ...]) -> None:
    """No password is in a Compose file or an environment variable, and each client mounts only the secrets of its own role."""
    composed = await asyncio.to_thread(_composed, *files)
    mounted = {"migrate": {"owner"}, "service": {"service"}, "cli": {"import"}, "envoy": set(), "prometheus": set(), "grafana": set()}
    for name, service in composed["services"].items():
        sources = {mount["source"] for mount in service.get("volumes", [])}
        secrets = {source.removeprefix("secrets-") for source in sources if source.startswith("secrets-")}
        assert secrets == mounted.get(name, {"postgres", "owner", "import", "service"} if name != "etcd" else set()), name
        for variable, value in service.get("environment", {}).items():
            assert not variable.endswith("_PASSWORD"), name
            assert urlsplit(value).password is None, name


@_with_compose
@pytest.mark.parametrize(("files", "sslmode"), [(_BASE, "disable"), (_PATRONI, "disable"), (_SECURED, "verify-full")])
async def test_sslmode(files: tuple[str, ...], sslmode: str) -> None:
    """Every URL sets sslmode: plaintext on the internal network of one machine, verified TLS in the secured variant."""
    services = (await asyncio.to_thread(_composed, *files))["services"]
    for name, role in (("migrate", "owner"), ("service", "service"), ("cli", "import")):
        url = urlsplit(services[name]["environment"]["BACKUPS_DATABASE_URL"])
        query = parse_qs(url.query, strict_parsing=True)
        assert url.username == f"backups_{role}"
        assert query["passfile"] == [f"/run/secrets/{role}/pgpass"]
        assert query["sslmode"] == [sslmode]
        assert query.get("sslrootcert", []) == ([f"/run/secrets/{role}/ca.crt"] if sslmode == "verify-full" else [])


@_with_compose
@_overlays
async def test_command_of_compose(files: tuple[str, ...]) -> None:
    """The service `cli` starts no other service, such as `migrate`, passes the caller's token on, and can copy standard input."""
    cli = (await asyncio.to_thread(_composed, *files))["services"]["cli"]
    assert not cli.get("depends_on")
    assert "BACKUPS_TOKEN" in cli["environment"]
    assert cli["tmpfs"] == ["/tmp"]


@_with_compose
@pytest.mark.parametrize(("variables", "ca_file"), [({}, ""), ({"BACKUPS_CA_FILE": "/etc/hosts"}, "/etc/backups/ca.crt")])
async def test_command_of_secured_compose(variables: dict[str, str], ca_file: str) -> None:
    """The service `cli` calls Envoy over TLS, expects the public host name, and trusts the caller's authority if there is one."""
    cli = (await asyncio.to_thread(_composed, *_SECURED, **variables))["services"]["cli"]
    environment = cli["environment"]
    assert (environment["BACKUPS_ADDRESS"], environment["BACKUPS_SERVER_NAME"]) == ("envoy:8443", "/x")
    assert environment["BACKUPS_CA_FILE"] == ca_file
    [mount] = [mount for mount in cli["volumes"] if mount["target"] == "/etc/backups/ca.crt"]
    assert (mount["source"], mount["read_only"]) == (variables.get("BACKUPS_CA_FILE", "/dev/null"), True)


@_with_compose
async def test_grafana_has_no_administrator() -> None:
    """Grafana has no login form, no basic authentication and no administrator account."""
    environment = (await asyncio.to_thread(_composed, *_BASE))["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_generated_secrets(tmp_path: Path) -> None:
    """Secrets are random and readable only by owner and group; a second run keeps them and completes an interrupted run."""

    def generate() -> dict[str, bytes]:
        script = (ROOT / "deploy" / "compose" / "generate-secrets.py").read_text(encoding="utf-8")
        subprocess.run([sys.executable, "-c", script.replace("/run/secrets", str(tmp_path))], check=True)
        return {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.glob("*/*")}

    for folder in ("postgres", "owner", "import", "service"):
        (tmp_path / folder).mkdir()
    (tmp_path / "owner" / "pgpass.new").write_text("interrupted")
    first = generate()
    assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("*/*")} == {0o440}
    passwords = [first[f"{role}/pgpass"].split(b":")[-1].strip() for role in ("owner", "import", "service")]
    passwords += [first[f"postgres/{name}"] for name in ("superuser", "replication", "patroni")]
    assert len({*passwords}) == 6
    assert {len(password) for password in passwords} == {64}
    (tmp_path / "service" / "ca.crt").unlink()
    assert generate() == first


def test_generated_certificate(tmp_path: Path) -> None:
    """A strict verifier that trusts the generated certificate accepts it for both nodes and for no other name."""
    for folder in ("postgres", "owner", "import", "service"):
        (tmp_path / folder).mkdir()
    script = (ROOT / "deploy" / "compose" / "generate-secrets.py").read_text(encoding="utf-8")
    subprocess.run([sys.executable, "-c", script.replace("/run/secrets", str(tmp_path))], check=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "postgres" / "tls.crt", tmp_path / "postgres" / "tls.key")
    client = ssl.create_default_context(cafile=tmp_path / "service" / "ca.crt")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("postgres", "postgres-2"):
        handshake(client, server, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client, server, "elsewhere")


@_with_compose
async def test_patroni() -> None:
    """Every client URL has both nodes, `migrate` waits for both, and the nodes differ only in their names."""
    services = (await asyncio.to_thread(_composed, *_PATRONI))["services"]
    for name in ("migrate", "service", "cli"):
        url = urlsplit(services[name]["environment"]["BACKUPS_DATABASE_URL"])
        assert url.netloc.rpartition("@")[2] == "postgres,postgres-2"
        assert parse_qs(url.query)["target_session_attrs"] == ["read-write"]
    assert {"postgres", "postgres-2"} <= set(services["migrate"]["depends_on"])
    alike: list[dict[str, str]] = []
    for name in ("postgres", "postgres-2"):
        settings = services[name]["environment"]
        settings.pop("POSTGRES_PASSWORD_FILE", None)  # read only by the image's entrypoint, which Patroni replaces
        own = {key: settings.pop(f"PATRONI_{key}") for key in ("NAME", "RESTAPI_CONNECT_ADDRESS", "POSTGRESQL_CONNECT_ADDRESS")}
        assert own == {"NAME": name, "RESTAPI_CONNECT_ADDRESS": f"{name}:8008", "POSTGRESQL_CONNECT_ADDRESS": f"{name}:5432"}
        alike.append(settings)
    assert alike[0] == alike[1]


def test_leader_steps_down_before_its_lock_expires() -> None:
    """A leader that cannot reach etcd steps down before its lock expires, by Patroni's rule for the three settings."""
    dcs = yaml.safe_load((ROOT / "deploy" / "patroni" / "patroni.yaml").read_text(encoding="utf-8"))["bootstrap"]["dcs"]
    assert dcs["loop_wait"] + 2 * dcs["retry_timeout"] <= dcs["ttl"]


def test_monitoring() -> None:
    """The files that Prometheus and Grafana mount exist, and their configuration has the addresses of the services."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    services = compose["services"]
    mounts = [mount.split(":") for name in ("prometheus", "grafana") for mount in services[name]["volumes"]]
    assert all((ROOT / source).exists() or source in compose["volumes"] for source, *_ in mounts)
    scraped = {
        job["job_name"]: job for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    }
    [found] = scraped["backups"]["dns_sd_configs"]
    [name] = found["names"]
    assert services[name]["environment"]["BACKUPS_METRICS_LISTEN"] == f"0.0.0.0:{found['port']}"
    envoy = yaml.safe_load((ROOT / "deploy" / "envoy.yaml").read_text(encoding="utf-8"))["static_resources"]["listeners"]
    [address] = [listener["address"]["socket_address"] for listener in envoy if listener["name"] == "metrics"]
    assert scraped["envoy"]["static_configs"] == [{"targets": [f"envoy:{address['port_value']}"]}]
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "backups.yaml").read_text(encoding="utf-8"))["providers"]
    assert ["./deploy/grafana/dashboards", provider["options"]["path"], "ro"] in mounts
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in {f"{provider['options']['path']}/{name}.json" for name in DASHBOARDS}
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))["datasources"]
    for dashboard in DASHBOARDS.values():
        assert dashboard["templating"]["list"][0]["current"] == {"text": source["name"], "value": source["uid"]}
    assert source["url"] == "http://prometheus:9090"


@_with_compose
@_overlays
async def test_catalog_metrics_are_on(files: tuple[str, ...]) -> None:
    """Replicas serve metrics of the catalog, with the default limit and the service's role, on a port that is not published."""
    service = (await asyncio.to_thread(_composed, *files))["services"]["service"]
    names = ("DATABASE_URL", "METRICS_LISTEN", "CATALOG_METRICS", "ALLOW_ANONYMOUS_METRICS")
    variables = {f"BACKUPS_{name}": service["environment"][f"BACKUPS_{name}"] for name in names}
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in variables.items():
            patch.setenv(variable, value)
        settings = Settings.read()
    settings.require_safe_addresses()
    assert (settings.catalog_metrics, settings.catalog_metrics_limit) == (True, 1000)
    assert urlsplit(settings.require_database_url()).username == "backups_service"
    assert "ports" not in service
    assert not {name for name in service["environment"] if name.startswith("BACKUPS_CATALOG_METRICS_")}
