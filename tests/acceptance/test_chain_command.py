"""The command `chain`, in its own process."""

import json
import sys

import pytest

from tests.support import processes
from tests.support.catalog import Sql
from tests.support.commands import Done, RunCommand, environment
from tests.support.repository import ROOT

_LISTING = ROOT / "samples" / "walg-backup-list.json"
_LINKS = 100_000


async def test_chain(command: RunCommand, import_url: str, database_url: str) -> None:
    """`chain` prints the chain as a table and as JSON, with a role that can only read."""
    await command("import", "walg", str(_LISTING), "--folder-id", "f1", "--cluster-id", "c1", BACKUPS_DATABASE_URL=import_url)
    done = await command("chain", "c1:backup_20261121T031502Z_D", BACKUPS_DATABASE_URL=database_url)
    assert (done.status, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["RELATION", "BACKUP", "COMPLETED", "KIND", "SIZE", "STATE"],
        ["needs", "c1:backup_20261120T031501Z", "2026-11-20", "02:41:58Z", "base", "849.5", "GiB", "usable"],
        ["this", "c1:backup_20261121T031502Z_D", "2026-11-21", "00:47:27Z", "incremental", "23.6", "GiB", "usable"],
        ["needed", "by", "c1:backup_20261122T031502Z_D", "2026-11-22", "00:39:40Z", "incremental", "20.6", "GiB", "usable"],
    ]
    done = await command("chain", "c1:backup_20261121T031502Z_D", "--json", BACKUPS_DATABASE_URL=database_url)
    found = json.loads(done.stdout)
    [needed], [needing] = found.pop("needs"), found.pop("neededBy")
    assert found == {
        "id": "c1:backup_20261121T031502Z_D",
        "name": "backup_20261121T031502Z_D_20261120T031501Z",
        "state": "usable",
        "completedAt": "2026-11-21T00:47:27.803600Z",
        "method": "incremental",
        "contents": "everything",
        "sizeBytes": found["sizeBytes"],
        "missingSince": None,
        "folderId": "f1",
        "clusterId": "c1",
        "tool": "walg",
        "database": None,
    }
    assert found["sizeBytes"] > 0
    assert (needed["id"], needing["id"]) == ("c1:backup_20261120T031501Z", "c1:backup_20261122T031502Z_D")


@pytest.mark.parametrize(
    ("backup_id", "shown"), [("c1:none", "c1:none"), ("x\x1b[2J", "x\\x1b[2J"), ("x" * 200, "x" * 100)], ids=["unknown", "escape", "long"]
)
async def test_unknown_id(command: RunCommand, database_url: str, backup_id: str, shown: str) -> None:
    """An unknown id is one line on standard error, with status 1."""
    done = await command("chain", backup_id, BACKUPS_DATABASE_URL=database_url)
    assert done == Done(1, "", f"backup-service: the catalog has no backup {shown}: `backup-service list` shows the ids\n")


@pytest.mark.parametrize(("first", "as_json"), [("'{}'", False), (f"ARRAY['n{_LINKS}']", True)], ids=["chain as a table", "cycle as JSON"])
async def test_a_long_chain(sql: Sql, database_url: str, first: str, *, as_json: bool) -> None:
    """A chain and a cycle of 100,000 backups are printed within 400 MiB of address space."""
    await sql.execute(f"""
        INSERT INTO backups (id, folder_id, created_at, source_cluster_id, started_at, tool, name, chain, needs)
        SELECT 'b' || n, 'f1', '2026-01-01 00:00:00+00'::timestamptz + n * interval '1 minute', 'c1', '2026-01-01 00:00:00+00', 'walg',
               'n' || n, 'unknown', CASE WHEN n = 1 THEN {first} ELSE ARRAY['n' || n - 1] END
        FROM generate_series(1, {_LINKS}) AS n""")
    program = [sys.executable, "-m", "service", "chain", f"b{_LINKS // 2}", *(["--json"] if as_json else [])]
    done = await processes.run(
        *("/bin/sh", "-c", 'ulimit -v 409600; exec "$@"', "sh", *program), cwd=ROOT, env=environment(BACKUPS_DATABASE_URL=database_url)
    )
    assert (done.returncode, done.stderr) == (0, b"")
    half = _LINKS // 2
    needs, needed_by = (half - 1, half) if first == "'{}'" else (_LINKS - 1, _LINKS - 1)
    if as_json:
        found = json.loads(done.stdout)
        assert (len(found["needs"]), len(found["neededBy"])) == (needs, needed_by)
    else:
        assert done.stdout.count(b"\n") == 2 + needs + needed_by
