"""deploy/: the manifests are valid, agree with each other, with Envoy's configuration and with the settings; Envoy leaves as they say."""

import asyncio
import base64
import contextlib
import json
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import kubernetes_validate
import pytest
import yaml
from grpc_health.v1 import health_pb2

from service import VERSION, pb
from service.api.health import LIVENESS, Health
from service.server import _WATCHDOG_MARGIN, Server
from service.setting_names import ENV_PREFIX
from service.settings import Settings
from tests.support.certificates import Authority, Files
from tests.support.deployment import configuration, envoy_binary, fetch
from tests.support.ports import free_ports
from tests.support.repository import ROOT
from tests.support.server import StartServer

_DEPLOY = ROOT / "deploy"
_FILES = sorted((_DEPLOY / "kubernetes").glob("*.yaml"))
_EXAMPLE = _DEPLOY / "kubernetes" / "secrets.example.yaml"
_NAME, _COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"

# How late Envoy may learn of a pod: what CoreDNS lets its answers live as clusters are set up, then Envoy's own `dns_refresh_rate`.
_DNS_S = 30 + 5


def _documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text(encoding="utf-8")) if document]


_KUSTOMIZATION = _documents(_DEPLOY / "kustomization.yaml")[0]
_MANIFESTS = [document for file in _FILES for document in _documents(file)]
_ENVOY = _documents(_DEPLOY / "envoy.yaml")[0]
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}  # fmt: skip


def _literals(name: str) -> dict[str, str]:
    """The variables of a generated ConfigMap."""
    [file] = [generator["envs"] for generator in _KUSTOMIZATION["configMapGenerator"] if generator["name"] == name]
    return dict(line.split("=", 1) for line in (_DEPLOY / file[0]).read_text(encoding="utf-8").splitlines() if line[0] != "#")


_SETTINGS = _literals("settings")


def _of(kind: str, documents: list[dict[str, Any]] = _MANIFESTS) -> dict[str, dict[str, Any]]:
    """The objects of a kind, by name."""
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


def _templates() -> dict[str, dict[str, Any]]:
    """Every pod that the manifests make, by the name of what makes it."""
    jobs = _of("Job") | {name: job["spec"]["jobTemplate"] for name, job in _of("CronJob").items()}
    return {name: workload["spec"]["template"] for name, workload in (_of("Deployment") | jobs).items()}


def _containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every container, with its pod."""
    for template in _templates().values():
        for container in template["spec"].get("initContainers", []) + template["spec"]["containers"]:
            yield template["spec"], container


def _container(name: str) -> dict[str, Any]:
    [container] = _templates()[name]["spec"]["containers"]
    return dict(container)


def _environment(container: dict[str, Any]) -> dict[str, str]:
    """The variables of a container, with the values of the example's Secrets."""
    secrets = {name: secret["stringData"] for name, secret in _of("Secret", _documents(_EXAMPLE)).items()}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= _literals(source["configMapRef"]["name"])
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        found[variable["name"]] = secrets[reference["name"]][reference["key"]] if reference else variable["value"]
    return found


def _settings(name: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a pod's process reads."""
    for variable, value in _environment(_container(name)).items():
        monkeypatch.setenv(variable, base64.b64encode(bytes(32)).decode() if value == "REPLACE" else value)
    return Settings.read()


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def _selected(selector: dict[str, Any]) -> set[str]:
    return {name for name, template in _templates().items() if _selects(selector, template["metadata"]["labels"])}


@pytest.fixture(name="built", scope="module")
def _built() -> list[dict[str, Any]]:
    """What `kubectl apply -k deploy` applies."""
    return _kustomized(_DEPLOY)


def _kustomized(folder: Path) -> list[dict[str, Any]]:
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        pytest.skip("neither kubectl nor kustomize is installed")
    text = subprocess.run([*command, str(folder)], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.name)
def test_manifests_are_valid(file: Path) -> None:
    """Every manifest is what Kubernetes takes, with no field that it does not know."""
    for document in _documents(file):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_every_manifest_is_deployed() -> None:
    """The kustomization names every manifest but examples, imports (each cluster has its own) and the namespace."""
    others = {file for file in _FILES if ".example." in file.name or file.name.startswith(("import-", "namespace"))}
    assert sorted(_KUSTOMIZATION["resources"]) == [str(file.relative_to(_DEPLOY)) for file in _FILES if file not in others]


def test_built(built: list[dict[str, Any]]) -> None:
    """Kustomize makes valid objects, in no namespace; Envoy's ConfigMap holds the very files that Compose and the tests run."""
    for document in built:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        assert "namespace" not in document["metadata"]
    maps = _of("ConfigMap", built)
    [config] = [each for name, each in maps.items() if name.startswith("envoy-")]
    assert config["data"] == {name: (_DEPLOY / name).read_text(encoding="utf-8") for name in ("envoy.yaml", "envoy-certificate.yaml")}
    descriptor = base64.b64decode(config["binaryData"]["api_descriptor.binpb"])
    assert descriptor == (_DEPLOY / "api_descriptor.binpb").read_bytes()
    pods = [workload["spec"]["template"]["spec"] for workload in (_of("Deployment", built) | _of("Job", built)).values()]
    used = {volume["configMap"]["name"] for pod in pods for volume in pod.get("volumes", []) if "configMap" in volume}
    used |= {source["configMapRef"]["name"] for pod in pods for container in pod["containers"] for source in container.get("envFrom", [])}
    assert used == set(maps)


def test_the_overlay_that_is_documented(tmp_path: Path) -> None:
    """What docs/deploying-kubernetes.md shows for a cluster of one's own builds on deploy/ as it is, and changes what it says."""
    page = (ROOT / "docs" / "deploying-kubernetes.md").read_text(encoding="utf-8")
    [overlay] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    shutil.copytree(_DEPLOY, tmp_path / "deploy")
    (tmp_path / "production").mkdir()
    (tmp_path / "production" / "kustomization.yaml").write_text(textwrap.dedent(overlay), encoding="utf-8")
    built = _kustomized(tmp_path / "production")
    for document in built:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        assert document["metadata"]["namespace"] == "backups"
    images = {container["image"] for each in _found(built, "containers") for container in each}
    assert images == {"registry.example.org/greenplum-backup-service@sha256:…", "envoyproxy/envoy@sha256:…"}
    assert _of("Service", built)["greenplum-backup-service"]["spec"]["type"] == "LoadBalancer"
    for generated in ("settings", "migrate"):
        [data] = [each["data"] for name, each in _of("ConfigMap", built).items() if name.startswith(f"{generated}-")]
        assert data.keys() == _literals(generated).keys()
        assert "db.example.org" in data["BACKUPS_DATABASE_URL"]
        assert [data["BACKUPS_DATABASE_URL"].replace("db.example.org", "postgres.example.org")] == [
            _literals(generated)["BACKUPS_DATABASE_URL"]
        ]


def test_variables_are_settings() -> None:
    """Every variable of ours is a setting of the server, or of the client's commands."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | {f"{ENV_PREFIX}ADDRESS", f"{ENV_PREFIX}TOKEN"}
    named = [variable["name"] for _, container in _containers() for variable in container.get("env", [])]
    assert {name for name in [*named, *_SETTINGS] if name.startswith(ENV_PREFIX)} <= known


@pytest.mark.parametrize("name", ["service", "migrate"])
def test_settings_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process starts with what the manifests set, and lets nobody in without a token."""
    settings = _settings(name, monkeypatch)
    settings.require_safe_addresses()
    settings.require_database_url()


def test_each_role_has_its_own_password() -> None:
    """Each workload connects as its own role, by TLS that verifies, with a password file of a Secret that no other workload mounts."""
    used: dict[str, tuple[str, str]] = {}
    for name, template in _templates().items():
        for container in template["spec"]["containers"]:
            if not (text := _environment(container).get("BACKUPS_DATABASE_URL")):
                continue
            url = urlsplit(text)
            query = {key: values[-1] for key, values in parse_qs(url.query, strict_parsing=True).items()}
            assert url.password is None
            assert query["sslmode"] == "verify-full"
            files = {query["passfile"], query["sslrootcert"]}
            [mount] = [mount for mount in container["volumeMounts"] if all(Path(file).parent == Path(mount["mountPath"]) for file in files)]
            [volume] = [volume for volume in template["spec"]["volumes"] if volume["name"] == mount["name"]]
            secret = _of("Secret", _documents(_EXAMPLE))[volume["secret"]["secretName"]]["stringData"]
            assert secret.keys() == {Path(file).name for file in files}
            assert secret["pgpass"].split(":")[3] == url.username
            used[name] = (str(url.username), volume["secret"]["secretName"])
    assert used == {
        "service": ("backups_service", "database"),
        "migrate": ("backups_owner", "database-owner"),
        "backup-import-walg-c1": ("backups_import", "database-import"),
    }
    assert "postgres:" not in _EXAMPLE.read_text(encoding="utf-8").replace("*:*:*:", "")


def test_secrets_are_files() -> None:
    """Every secret is a file that only its owner and the pod's group can read, except page token keys, which grant nothing."""
    for template in _templates().values():
        for volume in template["spec"].get("volumes", []):
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440
                assert template["spec"]["securityContext"]["fsGroup"] == template["spec"]["securityContext"]["runAsGroup"]
    names = {reference["name"] for _, container in _containers() for reference in _found(container, "secretKeyRef")}
    assert names == {"page-token"}
    assert not [source for _, container in _containers() for source in _found(container, "secretRef")]


def test_references() -> None:
    """Every Secret that a deployed manifest names is in the example, with each key; every ConfigMap is generated."""
    secrets = {name: set(secret["stringData"]) for name, secret in _of("Secret", _documents(_EXAMPLE)).items()}
    generated = {generator["name"] for generator in _KUSTOMIZATION["configMapGenerator"]}
    for name in _KUSTOMIZATION["resources"]:
        for document in _documents(_DEPLOY / name):
            for reference in _found(document, "secretKeyRef"):
                assert reference["key"] in secrets[reference["name"]]
            assert {secret["secretName"] for secret in _found(document, "secret")} <= set(secrets)
            assert {each["name"] for key in ("configMap", "configMapRef") for each in _found(document, key)} <= generated
    assert _of("Secret")["envoy-tls"]["type"] == "kubernetes.io/tls"


def _found(value: Any, key: str) -> Iterator[Any]:
    """Every value of a key, at any depth."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == key:
                yield each
            yield from _found(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from _found(each, key)


def test_selectors() -> None:
    """Each object selects the pods that it is for, and no others."""
    ours = set(_of("Deployment")) | {"migrate"}
    for name, deployment in _of("Deployment").items():
        assert _selected(deployment["spec"]["selector"]) == {name}
        for constraint in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert _selected(constraint["labelSelector"]) == {name}
        assert _selected(_of("PodDisruptionBudget")[name]["spec"]["selector"]) == {name}
    services = {name: _selected({"matchLabels": service["spec"]["selector"]}) for name, service in _of("Service").items()}
    assert services == {"service": {"service"}, "greenplum-backup-service": {"envoy"}}
    prefix = "greenplum-backup-service-"
    policies = {name.removeprefix(prefix): _selected(policy["spec"]["podSelector"]) & ours for name, policy in _of("NetworkPolicy").items()}
    assert policies == {
        "nothing": ours, "dns": ours, "postgresql": {"service", "migrate"}, "service": {"service"}, "envoy": {"envoy"},
        "backup-import-walg": set(),
    }  # fmt: skip
    for scaler in _of("HorizontalPodAutoscaler").values():
        assert scaler["spec"]["scaleTargetRef"]["name"] in _of("Deployment")


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, containers, Services, policies, probes and Envoy's configuration name the same ports."""
    settings = _settings("service", monkeypatch)
    assert settings.health_listen
    assert settings.metrics_listen
    service = {port["name"]: port["containerPort"] for port in _container("service")["ports"]}
    assert service == {"grpc": settings.listen.port, "health": settings.health_listen.port, "metrics": settings.metrics_listen.port}
    envoy = {port["name"]: port["containerPort"] for port in _container("envoy")["ports"]}
    [tls] = [listener for listener in _ENVOY["static_resources"]["listeners"] if "transport_socket" in listener["filter_chains"][0]]
    [metrics] = [listener for listener in _ENVOY["static_resources"]["listeners"] if listener["name"] == "metrics"]
    assert envoy == {name: each["address"]["socket_address"]["port_value"] for name, each in (("https", tls), ("metrics", metrics))}

    headless, public = _of("Service")["service"]["spec"], _of("Service")["greenplum-backup-service"]["spec"]
    [cluster] = [cluster for cluster in _ENVOY["static_resources"]["clusters"] if cluster["name"] == "service"]
    [upstream] = [endpoint["address"]["socket_address"] for endpoint in _found(cluster["load_assignment"], "endpoint")]
    assert upstream == {"address": "service", "port_value": service[headless["ports"][0]["targetPort"]]}
    assert headless["ports"][0]["port"] == upstream["port_value"]  # a headless Service does not translate
    assert public["ports"][0]["targetPort"] in envoy

    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert _container("service")[name]["grpc"]["port"] == service["health"]
        assert _container("envoy")[name]["tcpSocket"]["port"] in envoy


def test_who_may_talk_to_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Envoy alone reaches the service's gRPC, Prometheus alone its metrics; the service reaches PostgreSQL, DNS and HTTPS; nobody more."""
    settings = _settings("service", monkeypatch)
    assert settings.metrics_listen
    policies = {name.removeprefix("greenplum-backup-service-"): each["spec"] for name, each in _of("NetworkPolicy").items()}
    assert policies["nothing"].keys() == {"podSelector", "policyTypes"}
    assert sorted(policies["nothing"]["policyTypes"]) == ["Egress", "Ingress"]

    grpc_rule, metrics_rule = policies["service"]["ingress"]
    assert [_selected(peer["podSelector"]) for peer in grpc_rule["from"]] == [{"envoy"}]
    assert [peer.keys() for peer in grpc_rule["from"]] == [{"podSelector"}]  # of this namespace
    assert _ports(grpc_rule) == {("TCP", settings.listen.port)}
    assert [peer["podSelector"]["matchLabels"] for peer in metrics_rule["from"]] == [{_NAME: "prometheus"}]
    assert _ports(metrics_rule) == {("TCP", settings.metrics_listen.port)}
    ports = [("TCP", port["containerPort"]) for port in _container("envoy")["ports"]]
    assert [_ports(rule) for rule in policies["envoy"]["ingress"]] == [{port} for port in ports]
    assert not [name for name in ("dns", "postgresql") if "ingress" in policies[name]]

    assert {name: [_ports(rule) for rule in policy["egress"]] for name, policy in policies.items() if "egress" in policy} == {
        "dns": [{("UDP", 53), ("TCP", 53)}],
        "postgresql": [{("TCP", 5432)}],
        "service": [{("TCP", 443)}],
        "envoy": [{("TCP", settings.listen.port)}],
        "backup-import-walg": [{("TCP", 443)}],
    }
    assert [_selected(peer["podSelector"]) for peer in policies["envoy"]["egress"][0]["to"]] == [{"service"}]


def _ports(rule: dict[str, Any]) -> set[tuple[str, int]]:
    return {(port["protocol"], port["port"]) for port in rule["ports"]}


async def test_probes() -> None:
    """Probes ask for what the health service knows; start and life are told of a server without its database, readiness is not."""
    probes = {name: _container("service")[f"{name}Probe"]["grpc"]["service"] for name in ("startup", "liveness", "readiness")}
    assert probes == {"startup": LIVENESS, "liveness": LIVENESS, "readiness": pb.BACKUP_SERVICE}
    health: Any = Health()
    answers = {name: (await health.Check(health_pb2.HealthCheckRequest(service=each), None)).status for name, each in probes.items()}
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert answers == {"startup": serving, "liveness": serving, "readiness": not_serving}


async def test_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service serves on until Envoy knows its successor, then has all the time that its end may take, its watchdog's too."""
    settings = _settings("service", monkeypatch)
    pod = _templates()["service"]["spec"]
    pre_stop = timedelta(seconds=_container("service")["lifecycle"]["preStop"]["sleep"]["seconds"])
    assert pre_stop >= timedelta(seconds=_DNS_S)
    assert "dns_refresh_rate" not in _ENVOY["static_resources"]["clusters"][0]
    server = Server(settings.model_copy(update={"auth": "none"}))
    assert timedelta(seconds=pod["terminationGracePeriodSeconds"]) >= pre_stop + server.longest_end + _WATCHDOG_MARGIN


def test_time_of_envoy_to_end() -> None:
    """After it has drained, Envoy lives on for as long as its longest call may take."""
    envoy = _container("envoy")
    drain = int(envoy["args"][envoy["args"].index("--drain-time-s") + 1])
    [longest] = {float(timeout.removesuffix("s")) for timeout in _found(_ENVOY, "grpc_timeout_header_max")}
    pre_stop = int(_pre_stop().rpartition("sleep ")[2])
    assert pre_stop >= drain + longest
    assert _templates()["envoy"]["spec"]["terminationGracePeriodSeconds"] >= pre_stop + 5


def test_a_deploy_takes_none_away() -> None:
    """A rolling deploy starts before it ends, and there are two of each at least."""
    for deployment in _of("Deployment").values():
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert _of("Deployment")["envoy"]["spec"]["replicas"] >= 2
    assert _of("HorizontalPodAutoscaler")["service"]["spec"]["minReplicas"] >= 2
    assert "replicas" not in _of("Deployment")["service"]["spec"]


@pytest.mark.parametrize("name", sorted(_templates()))
def test_pods_are_restricted(name: str) -> None:
    """Every pod passes Kubernetes' restricted profile, has an account of its own without a token, and no variables of other Services."""
    pod = _templates()[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {key for volume in pod.get("volumes", []) for key in volume} <= {"name", "secret", "configMap", "emptyDir"}
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod.get("volumes", []) if "emptyDir" in volume)
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    account = _of("ServiceAccount")[pod["serviceAccountName"]]
    assert account["automountServiceAccountToken"] is False
    assert [other for other, each in _templates().items() if each["spec"]["serviceAccountName"] == pod["serviceAccountName"]] == [name]


@pytest.mark.parametrize(("pod", "container"), list(_containers()), ids=[container["name"] for _, container in _containers()])
def test_containers_are_restricted(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Every container: no capability, no writing, bounded memory and storage, and an image with a version."""
    [user] = [line.split()[1] for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line.startswith("USER ")]
    assert container["securityContext"] == _RESTRICTED
    assert container["resources"]["requests"].keys() == {"cpu", "memory", "ephemeral-storage"}
    assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
    name, _, version = container["image"].rpartition(":")
    assert name
    assert "latest" not in version
    if name == "greenplum-backup-service":
        assert version == VERSION
        assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == user


def test_namespace_enforces_the_restricted_profile() -> None:
    """The namespace makes Kubernetes reject a pod that is not restricted."""
    [namespace] = _of("Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_envoys_files() -> None:
    """Envoy finds each file where its configuration looks; the certificate's folder is mounted whole, so that it follows the Secret."""
    envoy = _container("envoy")
    mounts = {mount["mountPath"]: (mount["name"], mount.get("subPath")) for mount in envoy["volumeMounts"]}
    assert mounts == {
        envoy["args"][envoy["args"].index("-c") + 1]: ("config", "envoy.yaml"),
        next(_found(_ENVOY, "path_config_source"))["path"]: ("config", "envoy-certificate.yaml"),
        str(Path(envoy["workingDir"], next(_found(_ENVOY, "proto_descriptor")))): ("config", "api_descriptor.binpb"),
        next(_found(_documents(_DEPLOY / "envoy-certificate.yaml"), "watched_directory"))["path"]: ("tls", None),
    }


def _pre_stop() -> str:
    shell, option, script = _container("envoy")["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, option) == ("bash", "-c")
    return str(script)


@contextlib.asynccontextmanager
async def _envoy_of_the_manifest(folder: Path, upstream: int) -> AsyncIterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Envoy with the manifest's arguments, but a shorter drain: its process, its port and its admin's."""
    folder.mkdir()
    files = Files(folder)
    files.write(Authority().pair("envoy"))
    port, tls_port, admin_port, metrics_port = free_ports(4)
    config = configuration([upstream], folder, port=port, tls_port=tls_port, admin_port=admin_port, metrics_port=metrics_port)
    (folder / "envoy.json").write_text(json.dumps(config), encoding="utf-8")
    arguments = shlex.join(_container("envoy")["args"]).replace("/etc/envoy/envoy.yaml", str(folder / "envoy.json"))
    arguments = arguments.replace("--drain-time-s 20", "--drain-time-s 2")
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([str(envoy_binary()), *shlex.split(arguments)], cwd=ROOT, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(30):
            while not await _is_ready(admin_port):
                assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")[-2000:]
                await asyncio.sleep(0.05)
        yield process, port, admin_port
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def _is_ready(admin_port: int) -> bool:
    try:
        return (await asyncio.to_thread(fetch, f"http://127.0.0.1:{admin_port}/ready")).status == 200
    except OSError:
        return False


async def test_envoy_leaves_unnoticed(start_server: StartServer, tmp_path: Path) -> None:
    """While one of two Envoys runs its preStop and is ended, no call fails: those that it had go to the other."""
    async with (
        start_server() as server,
        _envoy_of_the_manifest(tmp_path / "leaving", server.address.port) as (leaving, port, admin_port),
        _envoy_of_the_manifest(tmp_path / "staying", server.address.port) as (_, other_port, _),
    ):
        # No retry policy; that gRPC sends again what has never left the client is every client's default.
        options = [("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')]
        async with grpc.aio.insecure_channel(f"ipv4:127.0.0.1:{port},127.0.0.1:{other_port}", options=options) as channel:
            stub = pb.BackupServiceStub(channel)
            gone, calls = asyncio.Event(), 0

            async def call() -> None:
                nonlocal calls
                while not gone.is_set():
                    await stub.List(pb.ListBackupsRequest(folder_id="f1"))
                    calls += 1

            callers = [asyncio.create_task(call()) for _ in range(4)]
            script = _pre_stop().replace("/9901", f"/{admin_port}").replace("sleep 35", "sleep 4")
            hook = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE)
            try:
                stdout, _ = await asyncio.to_thread(hook.communicate)
                assert stdout.split(b" ")[1] == b"200"
                assert leaving.poll() is None  # only the signal ends it
                leaving.terminate()
                assert await asyncio.to_thread(leaving.wait, 20) == 0
                before = calls
                async with asyncio.timeout(20):
                    while calls < before + 100 and not any(caller.done() for caller in callers):
                        await asyncio.sleep(0.01)
            finally:
                gone.set()
                await asyncio.gather(*callers)
