"""The oldest PostgreSQL that is supported; the newest is what all other tests run on."""

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
    """All that is tested over SQL, from migrations to plans, imports and roles, holds on PostgreSQL 15 too."""
    program = debian_program(_POSTGRES)
    assert program
    others = ("test_pooler.py", "test_standby.py")  # with a PostgreSQL of their own, or none of whose versions matter
    ignored = [f"--ignore={ROOT / 'tests' / 'integration' / other}" for other in others]
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
