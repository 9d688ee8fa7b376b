"""Integration tests on the oldest supported PostgreSQL; most other tests run on the newest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.debian import debian_program
from tests.support.repository import ROOT

_POSTGRES = "/usr/lib/postgresql/15/bin/postgres"

_EXCLUDED = (
    *("test_pooler.py", "test_role_setup.py", "test_standby.py", "test_tls.py"),  # they start their own PostgreSQL
    *("test_connection.py", "test_database.py"),  # about the pool and its hosts, not about SQL
)


@pytest.mark.slow
@pytest.mark.debian("postgresql-15", program=_POSTGRES)
@pytest.mark.timeout(600)
def test_postgresql_15() -> None:
    """Every integration test that executes the service's SQL passes on PostgreSQL 15."""
    program = debian_program(_POSTGRES)
    assert program
    ignored = [f"--ignore={ROOT / 'tests' / 'integration' / file}" for file in _EXCLUDED]
    # The same tests on the newest PostgreSQL reach the same lines.
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ignored, "tests/integration"],
        cwd=ROOT,
        env=unmeasured | {"TEST_POSTGRES": str(Path(program).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0
