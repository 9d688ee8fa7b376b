"""Prometheus' rules, the dashboards and the documented metrics, compared with the metrics that are exposed."""

import asyncio
import contextlib
import re
import subprocess
import urllib.error
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service import pb
from service.catalog_metrics import families
from service.entry import Attempt, Entry, Listed
from service.postgres.freshness import Stalest
from service.postgres.imports.import_backups import Options, Target, load
from tests.support.catalog import AddBackups
from tests.support.certificates import Authority, Files
from tests.support.debian import debian_program
from tests.support.deployment import Deployment, deployed, fetch
from tests.support.monitoring import DASHBOARDS, PROMETHEUS, RULES
from tests.support.ports import free_ports
from tests.support.repository import ROOT
from tests.support.server import StartServer
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

_OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")

# Words of PromQL that are not names of metrics.
_KEYWORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}


async def _scrape(address: str, path: str = "/metrics") -> str:
    reply = await asyncio.to_thread(fetch, f"http://{address}{path}")
    assert reply.status == 200
    return str(reply.body)


def _names(scraped: str) -> set[str]:
    return set(re.findall(r"^([a-zA-Z_:][\w:]*)", scraped, re.MULTILINE))


@pytest.fixture(name="service_metrics")
async def _service_metrics(start_server: StartServer, tmp_path: Path) -> str:
    """Return the metrics of a server with TLS and tokens, after a call."""
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
    """Yield a replica behind Envoy, with metrics ports on both."""
    async with deployed(
        database_url,
        replicas=1,
        BACKUPS_METRICS_LISTEN=f"127.0.0.1:{metrics_port}",
        BACKUPS_CATALOG_METRICS="true",
        BACKUPS_CATALOG_METRICS_REFRESH="0.5",
    ) as deployment:
        yield deployment


class _Target(NamedTuple):
    """A query of a dashboard, and the labels that its legend shows."""

    expression: str
    labels: frozenset[str]


def _targets() -> dict[str, _Target]:
    """Return the queries of all dashboards, by dashboard, panel and letter."""
    return {
        f"{name}: {panel['title']} {target['refId']}": _Target(
            target["expr"], frozenset(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
        )
        for name, dashboard in DASHBOARDS.items()
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }


def _expressions() -> dict[str, str]:
    """Return the expressions of all rules and of the dashboards, by name."""
    rules = {rule.get("alert") or rule["record"]: rule["expr"] for rule in RULES}
    return rules | {name: target.expression for name, target in _targets().items()}


def _metrics(expression: str) -> set[str]:
    """Return the names of metrics in an expression, found without a parser."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expression)
    bare = re.sub(r"\{[^}]*\}|\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    return {name for name in re.findall(r"(?<![\w:.])([a-zA-Z_][\w:]*)\b(?!\s*\()", bare) if name not in _KEYWORDS}


def test_metrics_of_expressions() -> None:
    """The names of metrics are found in an expression with labels, ranges, functions and keywords."""
    expression = '1 - sum by (a) (rate(b_total{c="d", e=~"f|g"}[$__rate_interval])) / time() > 0.5 * h:i:j5m and k == 3 or vector(0)'
    assert _metrics(expression) == {"b_total", "h:i:j5m", "k"}


async def test_metrics_are_exposed(service_metrics: str, deployment: Deployment) -> None:
    """Every metric in a rule or a dashboard is exposed by the service or by Envoy, or recorded by a rule."""
    envoy_metrics = await _scrape(deployment.metrics_address, "/stats/prometheus")
    catalog_metrics = {family.name for family in families(Stalest([], left_out=0), 0)}
    known = (
        catalog_metrics
        | _names(service_metrics)
        | _names(envoy_metrics)
        | {rule["record"] for rule in RULES if "record" in rule}
        | {"up", "ALERTS"}
    )
    unknown = {name: missing for name, expression in _expressions().items() if (missing := _metrics(expression) - known)}
    assert not unknown


async def test_only_metrics_envoy_metrics(deployment: Deployment) -> None:
    """Envoy's metrics port serves no other part of its admin interface."""
    for method, path in [
        ("GET", "/"),
        ("GET", "/stats"),
        ("GET", "/config_dump"),
        ("POST", "/quitquitquit"),
        ("POST", "/stats/prometheus"),
    ]:
        reply = await asyncio.to_thread(fetch, f"http://{deployment.metrics_address}{path}", method)
        assert (path, reply.status) == (path, 404)


async def test_metrics_are_documented(service_metrics: str) -> None:
    """docs/operating.md has a row for each metric of the service, with its type and labels, and no other row."""
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
        for family in text_string_to_metric_families(service_metrics)
        if not family.name.endswith("_created")
    }
    assert documented == families


@contextlib.contextmanager
def _prometheus(targets: dict[str, str], folder: Path) -> Iterator[str]:
    """Run Prometheus with the project's files, but with these targets and a short interval; yield its URL."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
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


async def _query(url: str, path: str) -> Any:
    """Return the data of a response of Prometheus' API, or an empty result while Prometheus starts."""
    reply = await asyncio.to_thread(fetch, f"{url}/api/v1/{path}")
    assert reply.status in (200, 503), (path, reply.body)
    return reply.body["data"] if reply.status == 200 else {"result": []}


async def _import_every_state(import_url: str) -> None:
    """Import backups of the database demo, so that each metric of the catalog has a sample. The last restorable backup is new."""
    now = datetime.now(UTC)

    def entry(hours: int, **facts: Any) -> Entry:
        completed = now - timedelta(hours=hours)
        return Entry("", f"n{hours}", f"c1:{hours}", completed, completed - timedelta(minutes=9), 1000, database="demo", **facts)

    entries: list[Listed] = [
        entry(9, method="base"),
        entry(3, method="base", contents="metadata only"),
        entry(2, method="incremental", needs=("n9",)),
        Attempt("a1", "demo", now - timedelta(hours=1), "failed"),
        Attempt("a2", "demo", now - timedelta(minutes=9), "running"),
    ]
    await load(import_url, entries, Target("f1", "c1", "gpbackup"), Options())


# As Grafana replaces them if these values are selected.
_VARIABLES = {"$__rate_interval": "1m", "$folder": "f1", "$cluster": "c1", "$database": "demo"}


def _replaced(expression: str) -> str:
    for variable, value in _VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


async def _is_shown(url: str, target: _Target) -> bool:
    """Return True if a query has a result, and its legend no empty label."""
    with contextlib.suppress(urllib.error.URLError):  # not listening yet
        found = (await _query(url, f"query?query={urllib.parse.quote(_replaced(target.expression))}"))["result"]
        return bool(found) and all(target.labels <= set(series["metric"]) for series in found)
    return False


@pytest.mark.debian("prometheus", program="prometheus")
async def test_dashboards_have_data(
    deployment: Deployment, metrics_port: int, add_backups: AddBackups, import_url: str, tmp_path: Path
) -> None:
    """With a real Prometheus and deployment, every query of a dashboard has a result with the labels of its legend, and no alert fires."""
    [backup] = await add_backups(1)
    await _import_every_state(import_url)
    waiting = _targets()
    targets = {"backups": f"127.0.0.1:{metrics_port}", "envoy": deployment.metrics_address}
    with _prometheus(targets, tmp_path) as url:
        async with deployment.channel() as channel, asyncio.timeout(60):
            stub = pb.BackupServiceStub(channel)
            while waiting:
                await stub.Get(pb.GetBackupRequest(backup_id=backup.id))
                await stub.List(pb.ListBackupsRequest(folder_id="f1"))
                for name, target in list(waiting.items()):
                    if await _is_shown(url, target):
                        del waiting[name]
        await _check_variables(url)
        rules = [rule for group in (await _query(url, "rules"))["groups"] for rule in group["rules"]]
        assert len(rules) == len(RULES)
        assert not [rule for rule in rules if rule["health"] == "err"]
        assert not [alert for alert in (await _query(url, "alerts"))["alerts"] if alert["state"] == "firing"]


async def _check_variables(url: str) -> None:
    """Check that the variables folder, cluster and database have the imported values."""
    found: dict[str, list[str]] = {}
    for variable in DASHBOARDS["backups"]["templating"]["list"][1:]:
        matched = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
        assert matched
        query = urllib.parse.urlencode({"match[]": _replaced(matched[1])})
        found[variable["name"]] = await _query(url, f"label/{matched[2]}/values?{query}")
    assert found == {"folder": ["f1"], "cluster": ["c1"], "database": ["demo"]}
