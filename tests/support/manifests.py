"""Kubernetes manifests and the kustomization of deploy/."""

import base64
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.support.repository import ROOT

Document = dict[str, Any]

DEPLOY = ROOT / "deploy"
FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
SECRETS_EXAMPLE = DEPLOY / "kubernetes" / "secrets.example.yaml"


def documents(file: Path) -> list[Document]:
    """Return the documents of a YAML file, without empty ones."""
    return [document for document in yaml.safe_load_all(file.read_text(encoding="utf-8")) if document]


KUSTOMIZATION = documents(DEPLOY / "kustomization.yaml")[0]
MANIFESTS = [document for file in FILES for document in documents(file)]
ENVOY = documents(DEPLOY / "envoy.yaml")[0]


def objects(kind: str, manifests: list[Document] = MANIFESTS) -> dict[str, Document]:
    """Return the objects of a kind, by name."""
    return {document["metadata"]["name"]: document for document in manifests if document["kind"] == kind}


def config_map(name: str) -> dict[str, str]:
    """Return the variables of a generated ConfigMap."""
    [files] = [generator["envs"] for generator in KUSTOMIZATION["configMapGenerator"] if generator["name"] == name]
    return dict(line.split("=", 1) for line in (DEPLOY / files[0]).read_text(encoding="utf-8").splitlines() if line[0] != "#")


def pod_templates() -> dict[str, Document]:
    """Return the pod template of each Deployment, Job and CronJob, by the name of that object."""
    jobs = objects("Job") | {name: job["spec"]["jobTemplate"] for name, job in objects("CronJob").items()}
    return {name: workload["spec"]["template"] for name, workload in (objects("Deployment") | jobs).items()}


def containers() -> Iterator[tuple[Document, Document]]:
    """Yield the pod and the container for each container of the manifests."""
    for template in pod_templates().values():
        for container in template["spec"].get("initContainers", []) + template["spec"]["containers"]:
            yield template["spec"], container


def only_container(workload: str) -> Document:
    """Return the container of a workload whose pod has one."""
    [container] = pod_templates()[workload]["spec"]["containers"]
    return dict(container)


def environment_of(container: Document) -> dict[str, str]:
    """Return the variables of a container, with the values of the example's Secrets."""
    secrets = {name: secret["stringData"] for name, secret in objects("Secret", documents(SECRETS_EXAMPLE)).items()}
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= config_map(source["configMapRef"]["name"])
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        variables[variable["name"]] = secrets[reference["name"]][reference["key"]] if reference else variable["value"]
    return variables


def settings_of(workload: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings that the process of a workload reads."""
    for variable, value in environment_of(only_container(workload)).items():
        monkeypatch.setenv(variable, base64.b64encode(bytes(32)).decode() if value == "REPLACE" else value)
    return Settings.read()


def selected(selector: Document) -> set[str]:
    """Return the names of the workloads whose pods match a label selector."""
    return {name for name, template in pod_templates().items() if _matches(selector, template["metadata"]["labels"])}


def _matches(selector: Document, labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def values_of(value: Any, key: str) -> Iterator[Any]:
    """Yield the values of a key at every depth of a document."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == key:
                yield each
            yield from values_of(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from values_of(each, key)


def pre_stop_script() -> str:
    """Return the shell script of Envoy's preStop hook."""
    shell, option, script = only_container("envoy")["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, option) == ("bash", "-c")
    return str(script)


def kustomized(folder: Path) -> list[Document]:
    """Build a kustomization and return its documents, or skip the test if no builder is installed."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        pytest.skip("neither kubectl nor kustomize is installed")
    text = subprocess.run([*command, str(folder)], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [document for document in yaml.safe_load_all(text) if document]
