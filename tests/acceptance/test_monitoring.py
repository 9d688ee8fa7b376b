"""What watches the service: Prometheus' rules, the dashboard, and the page that says what to do; held to what is really exposed."""

import asyncio
import contextlib
import json
import re
import subprocess
import urllib.error
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service import pb
from tests.support.catalog import AddBackups
from tests.support.certificates import Authority, Files
from tests.support.debian import debian_program
from tests.support.deployment import Deployment, deployed, fetch
from tests.support.ports import free_ports
from tests.support.repository import ROOT
from tests.support.server import StartServer
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

_PROMETHEUS = ROOT / "deploy" / "prometheus"
_GROUPS = yaml.safe_load((_PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
_RULES: list[dict[str, Any]] = [rule for group in _GROUPS for rule in group["rules"]]
_ALERTS = {rule["alert"]: rule for rule in _RULES if "alert" in rule}
_DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
_OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")

# What PromQL has of words that are no metric.
_WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}


promtool = pytest.mark.debian("prometheus", program="promtool")


async def _scrape(address: str, path: str = "/metrics") -> str:
    reply = await asyncio.to_thread(fetch, f"http://{address}{path}")
    assert reply.status == 200
    return str(reply.body)


def _names(scraped: str) -> set[str]:
    return set(re.findall(r"^([a-zA-Z_:][\w:]*)", scraped, re.MULTILINE))


@pytest.fixture(name="of_the_service")
async def _of_the_service(start_server: StartServer, tmp_path: Path) -> str:
    """The metrics of a server that uses everything, once it has been called."""
    authority, issuer, files = Authority(), Issuer("one"), Files(tmp_path)
    files.write(authority.pair("first"))
    jwks = tmp_path / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    jwt = {"auth": "jwt", "jwks": str(jwks), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    async with start_server(metrics_listen="127.0.0.1:0", **jwt, **files.settings) as server:
        credentials = grpc.ssl_channel_credentials(authority.cert)
        async with grpc.aio.secure_channel(f"localhost:{server.address.port}", credentials) as channel:
            await pb.BackupServiceStub(channel).Get(pb.GetBackupRequest(backup_id="none")).code()
        return await _scrape(str(server.metrics_address))


@pytest.fixture(name="metrics_port")
def _metrics_port() -> int:
    [port] = free_ports(1)
    return port


@pytest.fixture(name="deployment")
async def _deployment(database_url: str, metrics_port: int) -> AsyncIterator[Deployment]:
    """A replica behind Envoy, both of which can be scraped."""
    async with deployed(database_url, replicas=1, BACKUPS_METRICS_LISTEN=f"127.0.0.1:{metrics_port}") as deployment:
        yield deployment


def _panels() -> Iterator[tuple[str, str]]:
    """The PromQL of the dashboard, by where it stands."""
    for panel in _DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]


def _expressions() -> dict[str, str]:
    """All PromQL there is, by where it stands."""
    return {rule.get("alert") or rule["record"]: rule["expr"] for rule in _RULES} | dict(_panels())


def _metrics(expression: str) -> set[str]:
    """The names of metrics in PromQL, as well as that can be told without parsing it."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expression)
    bare = re.sub(r"\{[^}]*\}|\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    return {name for name in re.findall(r"(?<![\w:.])([a-zA-Z_][\w:]*)\b(?!\s*\()", bare) if name not in _WORDS}


def test_metrics_of_expressions() -> None:
    """What these tests take for metrics in PromQL."""
    expression = '1 - sum by (a) (rate(b_total{c="d", e=~"f|g"}[$__rate_interval])) / time() > 0.5 * h:i:j5m and k == 3 or vector(0)'
    assert _metrics(expression) == {"b_total", "h:i:j5m", "k"}


async def test_metrics_are_exposed(of_the_service: str, deployment: Deployment) -> None:
    """Every metric that a rule or the dashboard names is exposed by the service or by Envoy, or is a rule's own."""
    of_envoy = await _scrape(deployment.metrics_address, "/stats/prometheus")
    known = _names(of_the_service) | _names(of_envoy) | {rule["record"] for rule in _RULES if "record" in rule} | {"up"}
    unknown = {where: missing for where, expression in _expressions().items() if (missing := _metrics(expression) - known)}
    assert not unknown


async def test_only_metrics_of_envoy(deployment: Deployment) -> None:
    """Envoy's port for metrics leads to nothing else of its admin interface."""
    for method, path in [
        ("GET", "/"),
        ("GET", "/stats"),
        ("GET", "/config_dump"),
        ("POST", "/quitquitquit"),
        ("POST", "/stats/prometheus"),
    ]:
        reply = await asyncio.to_thread(fetch, f"http://{deployment.metrics_address}{path}", method)
        assert (path, reply.status) == (path, 404)


async def test_metrics_are_documented(of_the_service: str) -> None:
    """docs/operating.md has a row for every metric of the service, with its type and labels, and no other."""
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram|info) \| (.*?) ?\| .+ \|$", _OPERATING, re.MULTILINE)
    documented: dict[str, tuple[str, set[str]]] = {}
    for name, kind, labels in rows:
        same = documented["grpc_server_started"][1] if "the same" in labels else set()
        documented[name] = kind, same | set(re.findall(r"`(\w+)`", labels))
    families = {
        family.name.removesuffix("_info"): (
            "info" if family.name.endswith("_info") else family.type,
            {label for sample in family.samples for label in sample.labels if label != "le"},
        )
        for family in text_string_to_metric_families(of_the_service)
        if not family.name.endswith("_created")
    }
    assert documented == families


def test_compose_fits() -> None:
    """Compose mounts files that there are, and its services answer where Prometheus and Grafana look for them."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    services = compose["services"]
    mounts = [mount.split(":") for name in ("prometheus", "grafana") for mount in services[name]["volumes"]]
    assert all((ROOT / source).exists() or source in compose["volumes"] for source, *_ in mounts)
    scraped = {
        job["job_name"]: job for job in yaml.safe_load((_PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    }
    [found] = scraped["backups"]["dns_sd_configs"]
    [name] = found["names"]
    assert services[name]["environment"]["BACKUPS_METRICS_LISTEN"] == f"0.0.0.0:{found['port']}"
    envoy = yaml.safe_load((ROOT / "deploy" / "envoy.yaml").read_text(encoding="utf-8"))["static_resources"]["listeners"]
    [address] = [listener["address"]["socket_address"] for listener in envoy if listener["name"] == "metrics"]
    assert scraped["envoy"]["static_configs"] == [{"targets": [f"envoy:{address['port_value']}"]}]
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "backups.yaml").read_text(encoding="utf-8"))["providers"]
    assert ["./deploy/grafana/dashboard.json", f"{provider['options']['path']}/dashboard.json", "ro"] in mounts
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))["datasources"]
    assert {panel["datasource"]["uid"] for panel in _DASHBOARD["panels"] if "datasource" in panel} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"


@promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml", "objectives.test.yml"],
    ],
    ids=" ".join,
)
def test_promtool(arguments: list[str]) -> None:
    """Configuration and rules are valid, and alerts fire where they should and nowhere else."""
    program = debian_program("promtool")
    assert program
    done = subprocess.run([program, *arguments], cwd=_PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    """Each alert has a test in which it fires, and one in which it does not."""
    fires: set[str] = set()
    silent: set[str] = set()
    for file in _PROMETHEUS.glob("*.test.yml"):
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            for check in test["alert_rule_test"]:
                (fires if check["exp_alerts"] else silent).add(check["alertname"])
    assert fires == silent == set(_ALERTS)


@pytest.mark.parametrize("alert", _ALERTS.values(), ids=_ALERTS)
def test_every_alert_is_explained(alert: dict[str, Any]) -> None:
    """Each alert has a severity, a summary, and a section in docs/operating.md that begins with that severity and says what to do."""
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook"] == f"docs/operating.md#{alert['alert'].lower()}"
    sections = dict(re.findall(r"^### (\w+)\n\n((?:(?!#).*\n)+)", _OPERATING, re.MULTILINE))
    assert sections[alert["alert"]].startswith(f"{alert['labels']['severity'].capitalize()}. ")
    assert len(sections[alert["alert"]]) > 100


def test_every_section_has_its_alert() -> None:
    """docs/operating.md explains no alert that there is not, and links to none."""
    sections = re.findall(r"^### (\w+)$", _OPERATING, re.MULTILINE)
    assert sorted(sections) == sorted(_ALERTS)
    assert set(re.findall(r"\]\(#(\w+)\)", _OPERATING)) <= {section.lower() for section in sections}


@contextlib.contextmanager
def _prometheus(targets: dict[str, str], folder: Path) -> Iterator[str]:
    """A Prometheus of these files, but for its targets and how often it looks; gives its URL."""
    config = yaml.safe_load((_PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(_PROMETHEUS / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [targets.pop(job["job_name"])]}]
    assert not targets
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    [port] = free_ports(1)
    program = debian_program("prometheus")
    assert program
    with (folder / "log").open("ab") as log:
        arguments = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


async def _ask(url: str, path: str) -> Any:
    """An answer of Prometheus's API; none while it starts."""
    reply = await asyncio.to_thread(fetch, f"{url}/api/v1/{path}")
    assert reply.status in (200, 503), (path, reply.body)
    return reply.body["data"] if reply.status == 200 else {"result": []}


@pytest.mark.debian("prometheus", program="prometheus")
async def test_the_dashboard_shows(deployment: Deployment, metrics_port: int, add_backups: AddBackups, tmp_path: Path) -> None:
    """In a real Prometheus over a real deployment every panel has data, every rule can be evaluated, and no alert fires."""
    [backup] = await add_backups(1)
    waiting = dict(_panels())
    targets = {"backups": f"127.0.0.1:{metrics_port}", "envoy": deployment.metrics_address}
    with _prometheus(targets, tmp_path) as url:
        async with deployment.channel() as channel, asyncio.timeout(60):
            stub = pb.BackupServiceStub(channel)
            while waiting:
                await stub.Get(pb.GetBackupRequest(backup_id=backup.id))
                await stub.List(pb.ListBackupsRequest(folder_id="f1"))
                for where, expression in list(waiting.items()):
                    with contextlib.suppress(urllib.error.URLError):  # not listening yet
                        query = urllib.parse.quote(expression.replace("$__rate_interval", "1m"))
                        if (await _ask(url, f"query?query={query}"))["result"]:
                            del waiting[where]
        rules = [rule for group in (await _ask(url, "rules"))["groups"] for rule in group["rules"]]
        assert len(rules) == len(_RULES)
        assert not [rule for rule in rules if rule["health"] == "err"]
        assert not [alert for alert in (await _ask(url, "alerts"))["alerts"] if alert["state"] == "firing"]
