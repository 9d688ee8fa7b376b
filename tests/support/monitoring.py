"""Prometheus' rules and Grafana's dashboards in deploy/."""

import json
from typing import Any

import yaml

from tests.support.repository import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
DASHBOARDS: dict[str, Any] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "deploy" / "grafana" / "dashboards").iterdir())
}
