"""Manifests of deploy/: validity, agreement with Envoy's configuration and the settings, and restrictions of pods."""

import base64
import re
import shutil
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import pytest
from grpc_health.v1 import health_pb2

from service import VERSION, pb
from service.api.health import LIVENESS, Health
from service.composition import shutdown_times
from service.process import WATCHDOG_MARGIN
from service.setting_names import ENV_PREFIX
from service.settings import Settings
from tests.support.manifests import (
    DEPLOY,
    ENVOY,
    FILES,
    KUSTOMIZATION,
    SECRETS_EXAMPLE,
    Document,
    config_map,
    containers,
    documents,
    environment_of,
    kustomized,
    objects,
    only_container,
    pod_templates,
    pre_stop_script,
    selected,
    settings_of,
    values_of,
)
from tests.support.repository import ROOT

_NAME_LABEL = "app.kubernetes.io/name"

# Longest time until Envoy sees a DNS change: CoreDNS' usual TTL, and Envoy's default `dns_refresh_rate`.
_DNS_S = 30 + 5

_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}  # fmt: skip


@pytest.fixture(name="built", scope="module")
def _built() -> list[Document]:
    """Return the objects that `kubectl apply -k deploy` applies."""
    return kustomized(DEPLOY)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_manifests_are_valid(file: Path) -> None:
    """Every manifest is valid for the newest Kubernetes, without unknown fields."""
    for document in documents(file):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_every_manifest_is_deployed() -> None:
    """The kustomization contains every manifest except examples, imports (one for each cluster) and the namespace."""
    others = {file for file in FILES if ".example." in file.name or file.name.startswith(("import-", "namespace"))}
    assert sorted(KUSTOMIZATION["resources"]) == [str(file.relative_to(DEPLOY)) for file in FILES if file not in others]


def test_kustomization_is_valid(built: list[Document]) -> None:
    """Kustomize builds valid objects without a namespace, and Envoy's ConfigMap contains the files that Compose and the tests use."""
    for document in built:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        assert "namespace" not in document["metadata"]
    maps = objects("ConfigMap", built)
    [config] = [each for name, each in maps.items() if name.startswith("envoy-")]
    assert config["data"] == {name: (DEPLOY / name).read_text(encoding="utf-8") for name in ("envoy.yaml", "envoy-certificate.yaml")}
    descriptor = base64.b64decode(config["binaryData"]["api_descriptor.binpb"])
    assert descriptor == (DEPLOY / "api_descriptor.binpb").read_bytes()
    pods = [workload["spec"]["template"]["spec"] for workload in (objects("Deployment", built) | objects("Job", built)).values()]
    used = {volume["configMap"]["name"] for pod in pods for volume in pod.get("volumes", []) if "configMap" in volume}
    used |= {source["configMapRef"]["name"] for pod in pods for container in pod["containers"] for source in container.get("envFrom", [])}
    assert used == set(maps)


def test_documented_overlay(tmp_path: Path) -> None:
    """The overlay in docs/deploying-kubernetes.md builds on deploy/ and makes the changes that the page describes."""
    page = (ROOT / "docs" / "deploying-kubernetes.md").read_text(encoding="utf-8")
    [overlay] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (tmp_path / "production").mkdir()
    (tmp_path / "production" / "kustomization.yaml").write_text(textwrap.dedent(overlay), encoding="utf-8")
    built = kustomized(tmp_path / "production")
    for document in built:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        assert document["metadata"]["namespace"] == "backups"
    images = {container["image"] for each in values_of(built, "containers") for container in each}
    assert images == {"registry.example.org/greenplum-backup-service@sha256:…", "envoyproxy/envoy@sha256:…"}
    assert objects("Service", built)["greenplum-backup-service"]["spec"]["type"] == "LoadBalancer"
    for generated in ("settings", "migrate"):
        [data] = [each["data"] for name, each in objects("ConfigMap", built).items() if name.startswith(f"{generated}-")]
        assert data.keys() == config_map(generated).keys()
        assert "db.example.org" in data["BACKUPS_DATABASE_URL"]
        assert [data["BACKUPS_DATABASE_URL"].replace("db.example.org", "postgres.example.org")] == [
            config_map(generated)["BACKUPS_DATABASE_URL"]
        ]


def test_variables_are_settings() -> None:
    """Every variable BACKUPS_* of the manifests is a setting of the server or of the client commands."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | {f"{ENV_PREFIX}ADDRESS", f"{ENV_PREFIX}TOKEN"}
    named = [variable["name"] for _, container in containers() for variable in container.get("env", [])]
    assert {name for name in [*named, *config_map("settings")] if name.startswith(ENV_PREFIX)} <= known


@pytest.mark.parametrize("name", ["service", "migrate"])
def test_settings_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the manifests are valid, and require authentication."""
    settings = settings_of(name, monkeypatch)
    settings.require_safe_addresses()
    settings.require_database_url()


def test_catalog_metrics_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service serves metrics of the catalog, with the default limit on their number."""
    settings = settings_of("service", monkeypatch)
    assert (settings.catalog_metrics, settings.catalog_metrics_limit) == (True, 1000)


def test_each_role_has_its_own_password() -> None:
    """Each workload connects as its own role over verified TLS, with a password file from a Secret that no other workload mounts."""
    used: dict[str, tuple[str, str]] = {}
    for name, template in pod_templates().items():
        for container in template["spec"]["containers"]:
            if not (text := environment_of(container).get("BACKUPS_DATABASE_URL")):
                continue
            url = urlsplit(text)
            query = {key: values[-1] for key, values in parse_qs(url.query, strict_parsing=True).items()}
            assert url.password is None
            assert query["sslmode"] == "verify-full"
            files = {query["passfile"], query["sslrootcert"]}
            [mount] = [mount for mount in container["volumeMounts"] if all(Path(file).parent == Path(mount["mountPath"]) for file in files)]
            [volume] = [volume for volume in template["spec"]["volumes"] if volume["name"] == mount["name"]]
            secret = objects("Secret", documents(SECRETS_EXAMPLE))[volume["secret"]["secretName"]]["stringData"]
            assert secret.keys() == {Path(file).name for file in files}
            assert secret["pgpass"].split(":")[3] == url.username
            used[name] = (str(url.username), volume["secret"]["secretName"])
    assert used == {
        "service": ("backups_service", "database"),
        "migrate": ("backups_owner", "database-owner"),
        "backup-import-walg-c1": ("backups_import", "database-import"),
    }
    assert "postgres:" not in SECRETS_EXAMPLE.read_text(encoding="utf-8").replace("*:*:*:", "")


def test_secrets_are_files() -> None:
    """Every secret is a file that only its owner and the pod's group can read, except page token keys, which grant no access."""
    for template in pod_templates().values():
        for volume in template["spec"].get("volumes", []):
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440
                assert template["spec"]["securityContext"]["fsGroup"] == template["spec"]["securityContext"]["runAsGroup"]
    names = {reference["name"] for _, container in containers() for reference in values_of(container, "secretKeyRef")}
    assert names == {"page-token"}
    assert not [source for _, container in containers() for source in values_of(container, "secretRef")]


def test_references() -> None:
    """Every Secret and key that a deployed manifest refers to is in the example, and every ConfigMap is generated."""
    secrets = {name: set(secret["stringData"]) for name, secret in objects("Secret", documents(SECRETS_EXAMPLE)).items()}
    generated = {generator["name"] for generator in KUSTOMIZATION["configMapGenerator"]}
    for name in KUSTOMIZATION["resources"]:
        for document in documents(DEPLOY / name):
            for reference in values_of(document, "secretKeyRef"):
                assert reference["key"] in secrets[reference["name"]]
            assert {secret["secretName"] for secret in values_of(document, "secret")} <= set(secrets)
            assert {each["name"] for key in ("configMap", "configMapRef") for each in values_of(document, key)} <= generated
    assert objects("Secret")["envoy-tls"]["type"] == "kubernetes.io/tls"


def test_selectors() -> None:
    """Each selector matches the pods that it is for, and no others."""
    ours = set(objects("Deployment")) | {"migrate"}
    for name, deployment in objects("Deployment").items():
        assert selected(deployment["spec"]["selector"]) == {name}
        for constraint in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert selected(constraint["labelSelector"]) == {name}
        assert selected(objects("PodDisruptionBudget")[name]["spec"]["selector"]) == {name}
    services = {name: selected({"matchLabels": service["spec"]["selector"]}) for name, service in objects("Service").items()}
    assert services == {"service": {"service"}, "greenplum-backup-service": {"envoy"}}
    prefix = "greenplum-backup-service-"
    policies = {
        name.removeprefix(prefix): selected(policy["spec"]["podSelector"]) & ours for name, policy in objects("NetworkPolicy").items()
    }
    assert policies == {
        "nothing": ours, "dns": ours, "postgresql": {"service", "migrate"}, "service": {"service"}, "envoy": {"envoy"},
        "backup-import-walg": set(),
    }  # fmt: skip
    for scaler in objects("HorizontalPodAutoscaler").values():
        assert scaler["spec"]["scaleTargetRef"]["name"] in objects("Deployment")


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, containers, Services, probes and Envoy's configuration use the same ports."""
    settings = settings_of("service", monkeypatch)
    assert settings.health_listen
    assert settings.metrics_listen
    service = {port["name"]: port["containerPort"] for port in only_container("service")["ports"]}
    assert service == {"grpc": settings.listen.port, "health": settings.health_listen.port, "metrics": settings.metrics_listen.port}
    envoy = {port["name"]: port["containerPort"] for port in only_container("envoy")["ports"]}
    [tls] = [listener for listener in ENVOY["static_resources"]["listeners"] if "transport_socket" in listener["filter_chains"][0]]
    [metrics] = [listener for listener in ENVOY["static_resources"]["listeners"] if listener["name"] == "metrics"]
    assert envoy == {name: each["address"]["socket_address"]["port_value"] for name, each in (("https", tls), ("metrics", metrics))}

    headless, public = objects("Service")["service"]["spec"], objects("Service")["greenplum-backup-service"]["spec"]
    [cluster] = [cluster for cluster in ENVOY["static_resources"]["clusters"] if cluster["name"] == "service"]
    [upstream] = [endpoint["address"]["socket_address"] for endpoint in values_of(cluster["load_assignment"], "endpoint")]
    assert upstream == {"address": "service", "port_value": service[headless["ports"][0]["targetPort"]]}
    assert headless["ports"][0]["port"] == upstream["port_value"]  # a headless Service does not translate
    assert public["ports"][0]["targetPort"] in envoy

    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert only_container("service")[name]["grpc"]["port"] == service["health"]
        assert only_container("envoy")[name]["tcpSocket"]["port"] in envoy


def test_network_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Envoy reaches the service's gRPC port, only Prometheus its metrics, and the service only PostgreSQL, DNS and HTTPS."""
    settings = settings_of("service", monkeypatch)
    assert settings.metrics_listen
    policies = {name.removeprefix("greenplum-backup-service-"): each["spec"] for name, each in objects("NetworkPolicy").items()}
    assert policies["nothing"].keys() == {"podSelector", "policyTypes"}
    assert sorted(policies["nothing"]["policyTypes"]) == ["Egress", "Ingress"]

    grpc_rule, metrics_rule = policies["service"]["ingress"]
    assert [selected(peer["podSelector"]) for peer in grpc_rule["from"]] == [{"envoy"}]
    assert [peer.keys() for peer in grpc_rule["from"]] == [{"podSelector"}]  # pods of this namespace
    assert _ports(grpc_rule) == {("TCP", settings.listen.port)}
    assert [peer["podSelector"]["matchLabels"] for peer in metrics_rule["from"]] == [{_NAME_LABEL: "prometheus"}]
    assert _ports(metrics_rule) == {("TCP", settings.metrics_listen.port)}
    ports = [("TCP", port["containerPort"]) for port in only_container("envoy")["ports"]]
    assert [_ports(rule) for rule in policies["envoy"]["ingress"]] == [{port} for port in ports]
    assert not [name for name in ("dns", "postgresql") if "ingress" in policies[name]]

    assert {name: [_ports(rule) for rule in policy["egress"]] for name, policy in policies.items() if "egress" in policy} == {
        "dns": [{("UDP", 53), ("TCP", 53)}],
        "postgresql": [{("TCP", 5432)}],
        "service": [{("TCP", 443)}],
        "envoy": [{("TCP", settings.listen.port)}],
        "backup-import-walg": [{("TCP", 443)}],
    }
    assert [selected(peer["podSelector"]) for peer in policies["envoy"]["egress"][0]["to"]] == [{"service"}]


def _ports(rule: Document) -> set[tuple[str, int]]:
    return {(port["protocol"], port["port"]) for port in rule["ports"]}


async def test_probes() -> None:
    """The health service knows the probed names, and only readiness fails without a database."""
    probed = {name: only_container("service")[f"{name}Probe"]["grpc"]["service"] for name in ("startup", "liveness", "readiness")}
    assert probed == {"startup": LIVENESS, "liveness": LIVENESS, "readiness": pb.BACKUP_SERVICE}
    health: Any = Health()
    responses = {name: (await health.Check(health_pb2.HealthCheckRequest(service=each), None)).status for name, each in probed.items()}
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert responses == {"startup": serving, "liveness": serving, "readiness": not_serving}


def test_grace_period_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """preStop covers the time after which Envoy sees a DNS change, and the grace period the longest shutdown and the watchdog."""
    settings = settings_of("service", monkeypatch)
    pod = pod_templates()["service"]["spec"]
    pre_stop = timedelta(seconds=only_container("service")["lifecycle"]["preStop"]["sleep"]["seconds"])
    assert pre_stop >= timedelta(seconds=_DNS_S)
    assert "dns_refresh_rate" not in ENVOY["static_resources"]["clusters"][0]
    longest = shutdown_times(settings).longest + WATCHDOG_MARGIN
    assert timedelta(seconds=pod["terminationGracePeriodSeconds"]) >= pre_stop + longest


def test_grace_period_of_envoy() -> None:
    """After Envoy has drained, it runs for at least the time limit of a call."""
    envoy = only_container("envoy")
    drain = int(envoy["args"][envoy["args"].index("--drain-time-s") + 1])
    [longest] = {float(timeout.removesuffix("s")) for timeout in values_of(ENVOY, "grpc_timeout_header_max")}
    pre_stop = int(pre_stop_script().rpartition("sleep ")[2])
    assert pre_stop >= drain + longest
    assert pod_templates()["envoy"]["spec"]["terminationGracePeriodSeconds"] >= pre_stop + 5


def test_rolling_update_keeps_capacity() -> None:
    """A rolling update starts a new pod before it stops an old one, and each Deployment has at least two pods."""
    for deployment in objects("Deployment").values():
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert objects("Deployment")["envoy"]["spec"]["replicas"] >= 2
    assert objects("HorizontalPodAutoscaler")["service"]["spec"]["minReplicas"] >= 2
    assert "replicas" not in objects("Deployment")["service"]["spec"]


@pytest.mark.parametrize("name", sorted(pod_templates()))
def test_pods_are_restricted(name: str) -> None:
    """Every pod meets the restricted profile, and has its own account without a token and no variables of other Services."""
    pod = pod_templates()[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {key for volume in pod.get("volumes", []) for key in volume} <= {"name", "secret", "configMap", "emptyDir"}
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod.get("volumes", []) if "emptyDir" in volume)
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    account = objects("ServiceAccount")[pod["serviceAccountName"]]
    assert account["automountServiceAccountToken"] is False
    assert [other for other, each in pod_templates().items() if each["spec"]["serviceAccountName"] == pod["serviceAccountName"]] == [name]


@pytest.mark.parametrize(("pod", "container"), list(containers()), ids=[container["name"] for _, container in containers()])
def test_containers_are_restricted(pod: Document, container: Document) -> None:
    """Every container has no capability, a read-only file system, limits of memory and storage, and an image with a version."""
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
    [namespace] = objects("Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_files_of_envoy() -> None:
    """Each file of Envoy's configuration is mounted; the certificate as a whole folder, because only that follows the Secret."""
    envoy = only_container("envoy")
    mounts = {mount["mountPath"]: (mount["name"], mount.get("subPath")) for mount in envoy["volumeMounts"]}
    assert mounts == {
        envoy["args"][envoy["args"].index("-c") + 1]: ("config", "envoy.yaml"),
        next(values_of(ENVOY, "path_config_source"))["path"]: ("config", "envoy-certificate.yaml"),
        str(Path(envoy["workingDir"], next(values_of(ENVOY, "proto_descriptor")))): ("config", "api_descriptor.binpb"),
        next(values_of(documents(DEPLOY / "envoy-certificate.yaml"), "watched_directory"))["path"]: ("tls", None),
    }
