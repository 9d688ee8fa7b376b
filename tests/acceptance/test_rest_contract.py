"""Conformance of the REST API to docs/openapi.json, tested by schemathesis through Envoy.

Mitigations: the service enforces the limits, and Envoy's local replies have the form of the service's errors (`local_reply_config` of
deploy/envoy.yaml). Without the latter, Envoy's responses to unknown parameters do not match the schema.
"""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support.catalog import AddBackups
from tests.support.commands import environment
from tests.support.deployment import Deployment
from tests.support.guarantees import Measure
from tests.support.repository import ROOT

# Generated page tokens are never valid. Envoy's transcoder returns 404, not 405, for methods that a path does not have.
_EXCLUDED = "positive_data_acceptance,unsupported_method"


def closed(schema: Any) -> Any:
    """Return the schema with `additionalProperties: false` in every object, so that undocumented fields fail."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    is_open = schema.get("type") != "object" or "@type" in schema.get("properties", {})  # google.protobuf.Any can be any message
    return inner if is_open else inner | {"additionalProperties": False}


def exemplify(schema: Any, examples: dict[str, str]) -> None:
    """Give parameters an example, so that requests find backups."""
    for path in schema["paths"].values():
        for parameter in path["get"]["parameters"]:
            if parameter["name"] in examples:
                parameter["example"] = examples[parameter["name"]]


@pytest.mark.slow
@pytest.mark.guarantee(17, "REST API by schemathesis, through Envoy, from an OpenAPI file generated from proto/")
@pytest.mark.timeout(3600)
async def test_responses(deployment: Deployment, add_backups: AddBackups, tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """Every response has a documented status, a documented content type, and only the fields of the schema."""
    backups = await add_backups(30, folder_id="f1")
    described = closed(json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8")))
    exemplify(described, {"folderId": "f1", "backupId": backups[0].id, "apiEndpointId": "iam"})
    results = await _tested(deployment, described, tmp_path, max_examples=3000 if long else 10)
    responses = {name: _sum(phases.values()) for name, phases in results["valid_rates"].items()}
    print(json.dumps(responses))
    ok = _sum(responses.values())["accepted"]
    generated = results["test_cases"]["generated"]
    measure(f"{generated:,} requests, {ok:,} of them answered OK; 0 undocumented responses (seed {results['seed']})")
    assert results["operations"]["tested"] == len(described["paths"])
    assert all(each["accepted"] for each in responses.values()), "an operation without an accepted request has not been tested"


async def _tested(deployment: Deployment, described: dict[str, Any], folder: Path, *, max_examples: int) -> dict[str, Any]:
    """Run schemathesis, and return its report.

    Raises:
        AssertionError: a response is not as described.
    """
    schema, report, authority = folder / "openapi.json", folder / "report.json", folder / "ca.pem"
    schema.write_text(json.dumps(described), encoding="utf-8")
    authority.write_bytes(deployment.authority.cert)
    options = [
        *("--url", f"https://localhost:{deployment.tls_port}", "--tls-verify", str(authority)),
        *("--header", f"Authorization: Bearer {deployment.token()}"),
        *("--exclude-checks", _EXCLUDED, "--continue-on-failure", "--max-examples", str(max_examples)),
        *("--generation-database", ":memory:"),
        *("--report-json-path", str(report), "--no-color"),
    ]
    done = await asyncio.to_thread(
        subprocess.run,
        [str(Path(sys.executable).parent / "schemathesis"), "run", str(schema), *options],
        check=False,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    return dict(json.loads(report.read_text(encoding="utf-8")))


def _sum(counts: Iterable[dict[str, int]]) -> Counter[str]:
    return sum(map(Counter, counts), Counter())
