"""The Kustomize component for the Prometheus Operator, in deploy/monitoring."""

import shutil
import subprocess
from pathlib import Path

import yaml

from tests.support.manifests import DEPLOY, Document, documents, kustomized, objects, only_container, selected

_FOLDER = DEPLOY / "monitoring"
_SCRAPED = {
    job["job_name"]: job.get("metrics_path", "/metrics")
    for job in yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
}


def test_rules_are_generated(tmp_path: Path) -> None:
    """The PrometheusRule has the rules of alerts.yml; `deploy/monitoring/generate` writes it."""
    for folder in ("monitoring", "prometheus"):
        shutil.copytree(DEPLOY / folder, tmp_path / folder)
    subprocess.run([tmp_path / "monitoring" / "generate"], check=True)
    generated = (tmp_path / "monitoring" / "prometheus-rule.yaml").read_text(encoding="utf-8")
    assert generated == (_FOLDER / "prometheus-rule.yaml").read_text(encoding="utf-8"), "run deploy/monitoring/generate"
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    assert yaml.safe_load(generated)["spec"] == rules


def test_pod_monitors() -> None:
    """Each PodMonitor selects the pods of one Deployment, and scrapes their metrics port under the job name that the rules use."""
    jobs: dict[str, str] = {}
    for monitor in documents(_FOLDER / "pod-monitors.yaml"):
        [workload] = selected(monitor["spec"]["selector"])
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in {port["name"] for port in only_container(workload)["ports"]}
        [relabeling] = endpoint["relabelings"]
        assert relabeling["targetLabel"] == "job"
        jobs[relabeling["replacement"]] = endpoint["path"]
    assert jobs == _SCRAPED


def test_component_in_an_overlay(tmp_path: Path) -> None:
    """An overlay with the component has everything of deploy/ and the monitors and rules, in its namespace."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (tmp_path / "production").mkdir()
    overlay = {"namespace": "backups", "resources": ["../deploy"], "components": ["../deploy/monitoring"]}
    (tmp_path / "production" / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    built = kustomized(tmp_path / "production")
    added = [each for each in built if each["apiVersion"].startswith("monitoring.coreos.com/")]

    def names(built: list[Document]) -> set[tuple[str, str]]:
        return {(each["kind"], each["metadata"]["name"]) for each in built}

    assert names(built) - names(added) == names(kustomized(DEPLOY))
    assert {(each["kind"], each["metadata"]["namespace"]) for each in added} == {("PodMonitor", "backups"), ("PrometheusRule", "backups")}
    assert len(objects("PodMonitor", added)) == 2
