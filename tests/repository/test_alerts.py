"""Alert rules: their syntax, their tests, and their sections in docs/operating.md."""

import re
import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from service.catalog_metrics import families
from service.postgres.freshness import Freshness, Stalest
from tests.support.debian import debian_program
from tests.support.monitoring import PROMETHEUS, RULES
from tests.support.repository import ROOT

_TESTS: list[dict[str, Any]] = [
    test for file in sorted(PROMETHEUS.glob("*.test.yml")) for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]
]
_TIME, _HOUR = datetime(2026, 11, 20, tzinfo=UTC), timedelta(hours=1)
_EVERYTHING = Freshness._make([0] * len(Freshness._fields))._replace(
    database="demo", last_created_at=_TIME, last_duration=_HOUR, last_base_id="b1", last_base_created_at=_TIME,
    last_base_duration=_HOUR, last_method="incremental", last_partial_created_at=_TIME, last_failed_started_at=_TIME,
    running_started_at=_TIME, imported_at=_TIME,
)  # fmt: skip
"""A row with every value, of a last increment and a last base."""

_ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
_OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.debian("prometheus", program="promtool")
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml", "objectives.test.yml", "catalog.test.yml"],
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
    for test in _TESTS:
        for check in test.get("alert_rule_test", []):
            (fires if check["exp_alerts"] else does_not_fire).add(check["alertname"])
    assert fires == does_not_fire == set(_ALERTS)


def test_cases_of_operators() -> None:
    """Each of the cases G1 to G6 has a test that compares all firing alerts."""
    cases = [test["name"].split(",")[0] for test in _TESTS if "promql_expr_test" in test and test["name"].startswith("G")]
    assert set(cases) == {f"G{number}" for number in range(1, 7)}


def test_series_have_the_labels_of_the_catalog_metrics() -> None:
    """Each series of the catalog in a test has the name and the labels of a metric that the service exports, and those of Prometheus."""
    exported = {sample.name: set(sample.labels) for family in families(Stalest([_EVERYTHING], left_out=0), 0) for sample in family.samples}
    used = {each["series"] for test in _TESTS for each in test["input_series"] if each["series"].startswith("backup_catalog_")}
    for series in used:
        name, labels = series.split("{")
        assert (name, set(re.findall(r"(\w+)=", labels))) == (name, exported[name] | {"job", "instance"})


def test_series_of_a_database_are_bounded() -> None:
    """A database has at most the number of series that docs/importing.md states."""
    page = (ROOT / "docs" / "importing.md").read_text(encoding="utf-8")
    [stated] = re.findall(r"at most two methods, so at most (\d+) series", page)
    samples = [sample for family in families(Stalest([_EVERYTHING], left_out=0), 0) for sample in family.samples]
    assert len([sample for sample in samples if "cluster_id" in sample.labels]) == int(stated)


@pytest.mark.parametrize("alert", _ALERTS.values(), ids=_ALERTS)
def test_every_alert_is_explained(alert: dict[str, Any]) -> None:
    """Each alert has a severity, a summary, and a section in docs/operating.md that starts with the severity."""
    assert alert["annotations"]["summary"]
    docs = "{{ with $externalLabels.backups_docs }}{{ . }}{{ else }}docs{{ end }}"
    assert alert["annotations"]["runbook_url"] == f"{docs}/operating.md#{alert['alert'].lower()}"
    sections = dict(re.findall(r"^### (\w+)\n\n((?:(?!#).*\n)+)", _OPERATING, re.MULTILINE))
    assert sections[alert["alert"]].startswith(f"{alert['labels']['severity'].capitalize()}. ")
    assert len(sections[alert["alert"]]) > 100


def test_every_section_has_its_alert() -> None:
    """Every section and link in docs/operating.md belongs to an existing alert."""
    sections = re.findall(r"^### (\w+)$", _OPERATING, re.MULTILINE)
    assert sorted(sections) == sorted(_ALERTS)
    assert set(re.findall(r"\]\(#(\w+)\)", _OPERATING)) <= {section.lower() for section in sections}
