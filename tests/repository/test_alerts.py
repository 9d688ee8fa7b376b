"""Alert rules: their syntax, their tests, and their sections in docs/operating.md."""

import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.debian import debian_program
from tests.support.monitoring import PROMETHEUS, RULES
from tests.support.repository import ROOT

_ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
_OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")


@pytest.mark.debian("prometheus", program="promtool")
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
    """Configuration and rules are valid, and the tests of the rules pass."""
    program = debian_program("promtool")
    assert program
    done = subprocess.run([program, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    """Each alert has a test in which it fires and a test in which it does not fire."""
    fires: set[str] = set()
    does_not_fire: set[str] = set()
    for file in PROMETHEUS.glob("*.test.yml"):
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            for check in test["alert_rule_test"]:
                (fires if check["exp_alerts"] else does_not_fire).add(check["alertname"])
    assert fires == does_not_fire == set(_ALERTS)


@pytest.mark.parametrize("alert", _ALERTS.values(), ids=_ALERTS)
def test_every_alert_is_explained(alert: dict[str, Any]) -> None:
    """Each alert has a severity, a summary, and a section in docs/operating.md that starts with the severity."""
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook"] == f"docs/operating.md#{alert['alert'].lower()}"
    sections = dict(re.findall(r"^### (\w+)\n\n((?:(?!#).*\n)+)", _OPERATING, re.MULTILINE))
    assert sections[alert["alert"]].startswith(f"{alert['labels']['severity'].capitalize()}. ")
    assert len(sections[alert["alert"]]) > 100


def test_every_section_has_its_alert() -> None:
    """Every section and link in docs/operating.md belongs to an existing alert."""
    sections = re.findall(r"^### (\w+)$", _OPERATING, re.MULTILINE)
    assert sorted(sections) == sorted(_ALERTS)
    assert set(re.findall(r"\]\(#(\w+)\)", _OPERATING)) <= {section.lower() for section in sections}
