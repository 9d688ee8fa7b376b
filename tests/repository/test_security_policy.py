"""Threat model of SECURITY.md and the tests that it names."""

from service import VERSION
from tests.support.repository import ROOT, named_tests

_SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_security_policy_names_existing_tests() -> None:
    """Every test that the threat model names exists, and every row of its tables names one."""
    assert named_tests(_SECURITY)
    model = _SECURITY.partition("## Threat model")[2].splitlines()
    rows = [line for line in model if line.startswith("| ") and not line.startswith(("| Statement |", "| --- |"))]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []


def test_security_policy_covers_every_attacker() -> None:
    """The threat model has a section for each of the five attackers, and the supported versions name this one."""
    for attacker in ("Unauthenticated client", "Client with a token", "Cluster operator", "Compromised replica", "Network attacker"):
        assert f"### {attacker}\n" in _SECURITY
    assert f"| {VERSION.rpartition('.')[0]}.x |" in _SECURITY
