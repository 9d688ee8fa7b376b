"""Coverage-guided fuzzing of page tokens, requests and files of imports.

Mitigations: the interceptor maps every error to a status in one table.
Importers validate their input and translate the errors of libraries.
If `except` in `gpbackup_history` caught sqlite3.Error only, the corpus alone would fail.
"""

import asyncio
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, TARGETS
from tests.support.commands import environment
from tests.support.guarantees import Measure
from tests.support.repository import ROOT

_SEEDS = sorted(CORPUS.glob("*/*"))
_LONGEST = {"page_token": 256, "request": 1024, "walg": 2048, "gpbackup": 2048}  # bytes
_RUNS = {"page_token": 1_000_000, "request": 500_000, "walg": 200_000, "gpbackup": 100_000}  # about ten minutes each
_TIMEOUT_S, _MEMORY_MB = 5, 512  # of one execution, and of the process


@pytest.mark.parametrize("seed", _SEEDS, ids=lambda seed: f"{seed.parent.name}-{seed.name}")
def test_corpus(seed: Path) -> None:
    """Every seed and every input that a fuzzer has found gives a correct result or a documented error."""
    with TARGETS[seed.parent.name]() as target:
        target(seed.read_bytes())


def test_every_target_has_a_corpus() -> None:
    """Each target has a folder of the corpus, each folder has a target, and no file has 10 kB or more."""
    assert {seed.parent.name for seed in _SEEDS} == set(TARGETS)
    assert max(seed.stat().st_size for seed in _SEEDS) < 10_000


@pytest.mark.guarantee(17, "fuzzing by atheris, guided by coverage")
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.timeout(7200)
async def test_fuzzing(name: str, tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """No input causes an undocumented error, takes more than 5 s or more than 512 MB of memory."""
    if find_spec("atheris") is None:
        pytest.skip("atheris is not installed: make soak installs it on platforms for which it has a wheel")
    runs = _RUNS[name] if long else 2_000
    found = tmp_path / "found"
    found.mkdir()
    flags = [
        *(f"-runs={runs}", f"-max_len={_LONGEST[name]}", f"-timeout={_TIMEOUT_S}", f"-rss_limit_mb={_MEMORY_MB}"),
        *(f"-artifact_prefix={tmp_path}/", "-print_final_stats=1"),
    ]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.fuzz", name, *flags, str(found), str(CORPUS / name)],
        check=False,
        cwd=ROOT,
        env=environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr[-5000:]
    ended = re.search(r"#(\d+)\s+DONE\s+cov: (\d+)", done.stderr)
    peak = re.search(r"peak_rss_mb:\s+(\d+)", done.stderr)
    assert ended, done.stderr[-5000:]
    assert peak, done.stderr[-5000:]
    measure(
        f"{name}: {int(ended[1]):,} executions, {ended[2]} edges covered, {len(list(found.iterdir()))} inputs of new coverage, {peak[1]} MB"
    )
    assert int(ended[1]) >= runs
