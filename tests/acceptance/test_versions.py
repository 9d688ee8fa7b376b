"""Integration tests on the oldest supported PostgreSQL; all other tests run on the newest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.debian import debian_program
from tests.support.repository import ROOT

_POSTGRES = "/usr/lib/postgresql/15/bin/postgres"


@pytest.mark.debian("postgresql-15", program=_POSTGRES)
@pytest.mark.timeout(600)
def test_postgresql_15() -> None:
    """The integration tests of migrations, plans, imports and roles pass on PostgreSQL 15."""
    program = debian_program(_POSTGRES)
    assert program
    excluded = ("test_pooler.py", "test_standby.py")  # they start their own PostgreSQL, or do not depend on its version
    ignored = [f"--ignore={ROOT / 'tests' / 'integration' / file}" for file in excluded]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ignored, "tests/integration"],
        cwd=ROOT,
        env=os.environ | {"TEST_POSTGRES": str(Path(program).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0
