"""The command `report`, in its own process."""

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.catalog import Sql
from tests.support.commands import Done, RunCommand, environment, unmeasured_environment
from tests.support.eventually import eventually
from tests.support.report_catalog import load_sample
from tests.support.repository import ROOT


async def test_report(command: RunCommand, import_url: str, database_url: str, tmp_path: Path) -> None:
    """`report` writes a page about every cluster, with a role that can only read, and replaces an existing file."""
    await load_sample(import_url, days=30)
    file = tmp_path / "report.html"
    file.write_text("before")
    file.chmod(0o644)
    done = await command("report", "--output", str(file), "--max-age", "2d", BACKUPS_DATABASE_URL=database_url)
    assert done == Done(0, f"Wrote {file}: 4 clusters, 3 with findings.\n", "")
    html = file.read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="c\d"><bdi>([\w-]+)', html) == ["experiment", "reporting", "staging", "dwh-production"]
    assert re.findall(r"<b>(\d+)</b><span>(\w+)", html) == [
        ("3", "overdue"),
        ("1", "broken"),
        ("0", "unknown"),
        ("1", "missing"),
        ("3", "failed"),
    ]
    assert html.endswith("</html>")
    assert list(tmp_path.iterdir()) == [file]


async def test_standard_output(database_url: str, import_url: str, sql: Sql) -> None:
    """`--output -` prints the page in UTF-8, in any locale, and the message on standard error."""
    await load_sample(import_url, days=5)
    await sql.execute("UPDATE freshness SET database = 'Lager Süd' WHERE database = 'sales'")
    program = (sys.executable, "-m", "service", "report", "--output", "-")
    done = await processes.run(*program, cwd=ROOT, env=environment(BACKUPS_DATABASE_URL=database_url, LC_ALL="C", PYTHONUTF8="0"))
    assert (done.returncode, done.stderr) == (0, b"Wrote -: 4 clusters, 3 with findings.\n")
    assert done.stdout.decode("utf-8").startswith("<!doctype html>")
    assert "<bdi>Lager Süd</bdi>" in done.stdout.decode("utf-8")


@pytest.mark.parametrize(
    ("options", "clusters", "found"),
    [
        (["--folder-id", "lab"], "1 cluster, 1", ["experiment"]),
        (["--cluster-id", "staging", "--max-age", "9000d"], "1 cluster, 1", ["staging"]),
        (["--tool", "walg"], "2 clusters, 1", ["staging", "dwh-production"]),
        (["--folder-id", "none"], "0 clusters, 0", []),
    ],
)
async def test_filters(
    command: RunCommand, import_url: str, database_url: str, tmp_path: Path, options: list[str], clusters: str, found: list[str]
) -> None:
    """--folder-id, --cluster-id and --tool limit the page to their clusters."""
    await load_sample(import_url, days=10)
    file = tmp_path / "report.html"
    done = await command("report", "--output", str(file), *options, BACKUPS_DATABASE_URL=database_url)
    assert (done.status, done.stdout) == (0, f"Wrote {file}: {clusters} with findings.\n")
    assert re.findall(r'<h2 id="c\d"><bdi>([\w-]+)', file.read_text(encoding="utf-8")) == found


async def test_expected_clusters(command: RunCommand, import_url: str, database_url: str, tmp_path: Path) -> None:
    """With --expect, the page has the expected clusters only, and names those that were never imported."""
    await load_sample(import_url, days=10)
    (tmp_path / "expected").write_text("dwh-production 9000d\nelsewhere\n")
    file = tmp_path / "report.html"
    options = ("--output", str(file), "--expect", str(tmp_path / "expected"))
    assert (await command("report", *options, BACKUPS_DATABASE_URL=database_url)).status == 0
    html = file.read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="c\d"><bdi>([\w-]+)', html) == ["dwh-production"]
    assert "Need attention: 0 of 1 cluster, and 1 never imported." in html
    assert '<li class="bad">cluster elsewhere</li>' in html


async def _many(sql: Sql, clusters: int, *, days: int) -> None:
    """Insert clusters with a backup on each of the last days: a base each week, and increments."""
    await sql.execute(f"""
        INSERT INTO backups (id, folder_id, created_at, source_cluster_id, started_at, size, tool, name, method, needs)
        SELECT c || ':backup_' || day, 'folder', time, 'cluster-' || c, time - (1 + random()) * interval '1 hour', 1e11 * (1 + random()),
               'walg', 'backup_' || day, CASE WHEN day % 7 = 6 THEN 'base' ELSE 'incremental' END,
               CASE WHEN day % 7 = 6 THEN '{{}}' ELSE ARRAY['backup_' || day + 1] END
        FROM generate_series(1, {clusters}) AS c, generate_series(0, {days - 1}) AS day,
             LATERAL (SELECT date_trunc('day', now()) - day * interval '1 day' AS time) AS of_day""")
    await sql.execute(f"""
        INSERT INTO imports (source_cluster_id, tool, folder_id, imported_at, entries, skipped, unusable, excluded)
        SELECT 'cluster-' || c, 'walg', 'folder', now(), {days}, 0, 0, 0 FROM generate_series(1, {clusters}) AS c""")
    await sql.execute(f"""
        INSERT INTO freshness (source_cluster_id, tool, folder_id, database, backups, restorable, last_backup_id, last_created_at)
        SELECT 'cluster-' || c, 'walg', 'folder', '', {days}, {days}, c || ':backup_0', date_trunc('day', now())
        FROM generate_series(1, {clusters}) AS c""")


@pytest.mark.parametrize(
    ("clusters", "options", "sections", "message"),
    [
        (50, [], 50, "50 clusters, 1 with findings."),
        (51, [], 1, "51 clusters, 1 with findings, 50 left out (--all shows them)."),
        (51, ["--all"], 51, "51 clusters, 1 with findings."),
    ],
)
async def test_many_clusters(
    command: RunCommand, sql: Sql, database_url: str, tmp_path: Path, clusters: int, options: list[str], sections: int, message: str
) -> None:
    """Above 50 clusters, only those with findings have a section, and the page and the command report the number of the others."""
    await _many(sql, clusters, days=1)
    await sql.execute("UPDATE freshness SET missing = 1 WHERE source_cluster_id = 'cluster-7'")
    file = tmp_path / "report.html"
    done = await command("report", "--output", str(file), *options, BACKUPS_DATABASE_URL=database_url)
    assert done == Done(0, f"Wrote {file}: {message}\n", "")
    html = file.read_text(encoding="utf-8")
    assert html.count("<section ") == sections
    assert ("Left out, because they have no findings: 50 clusters" in html) == (sections == 1)


@pytest.mark.timeout(300)
async def test_size_and_memory(sql: Sql, database_url: str, tmp_path: Path, *, long: bool) -> None:
    """A year of daily backups takes at most 10 kB for each of 100 clusters (1,000 in the long form), in 320 MiB of address space."""
    clusters = 1000 if long else 100
    await _many(sql, clusters, days=365)
    file = tmp_path / "report.html"
    program = [sys.executable, "-m", "service", "report", "--output", str(file), "--all", "--days", "365"]
    done = await processes.run(
        *("/bin/sh", "-c", 'ulimit -v 327680; exec "$@"', "sh", *program), cwd=ROOT, env=environment(BACKUPS_DATABASE_URL=database_url)
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert file.read_text(encoding="utf-8").count("<section ") == clusters
    assert file.stat().st_size <= 10_000 * clusters


# Errors


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("none/report.html", 1, "backup-service: --output {file}: No such file or directory"),
        ("", 2, "Invalid value for --output"),
        ("/dev/stdout", 2, "Invalid value for --output: /dev/stdout is not a file"),
    ],
    ids=["no folder", "a folder", "a device"],
)
async def test_bad_output(command: RunCommand, database_url: str, tmp_path: Path, name: str, status: int, message: str) -> None:
    """An output that cannot be written is a clear error."""
    file = tmp_path / name
    done = await command("report", "--output", str(file), BACKUPS_DATABASE_URL=database_url)
    assert (done.status, done.stdout) == (status, "")
    assert message.format(file=file) in done.stderr.replace("│ ", "").replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


async def test_interrupted(command: RunCommand, import_url: str, sql: Sql, database_url: str, tmp_path: Path) -> None:
    """If the catalog cannot be read, the command fails with the cause, and the earlier file stays."""
    await load_sample(import_url, days=5)
    await sql.execute("REVOKE SELECT ON attempts FROM backups_service")  # read after the page was begun
    file = tmp_path / "report.html"
    file.write_text("before")
    done = await command("report", "--output", str(file), BACKUPS_DATABASE_URL=database_url)
    assert (done.status, done.stdout) == (1, "")
    assert "permission denied for table attempts" in done.stderr
    assert (file.read_text(), list(tmp_path.iterdir())) == ("before", [file])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals(import_url: str, sql: Sql, database_url: str, tmp_path: Path, number: int) -> None:
    """A signal ends the command, the earlier file stays, and the temporary one is deleted."""
    await load_sample(import_url, days=5)
    file = tmp_path / "report.html"
    file.write_text("before")
    program = (sys.executable, "-m", "service", "report", "--output", file)
    env = environment(BACKUPS_DATABASE_URL=database_url)
    async with sql.transaction(), processes.running(*program, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as process:
        await sql.execute("LOCK TABLE attempts")  # read after the page was begun
        await eventually(lambda: len(list(tmp_path.iterdir())), 2, timeout_s=60)
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 60) in (1, 130)
    assert (file.read_text(), list(tmp_path.iterdir())) == ("before", [file])


async def test_full_disk(database_url: str, import_url: str, tmp_path: Path) -> None:
    """If the page does not fit, the command names the cause, and the earlier file stays."""
    await load_sample(import_url, days=30)
    file = tmp_path / "report.html"
    file.write_text("before")
    program = [sys.executable, "-m", "service", "report", "--output", str(file)]
    limited = ("/bin/sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *program)  # also for coverage's file
    done = await processes.run(*limited, cwd=ROOT, env=unmeasured_environment(BACKUPS_DATABASE_URL=database_url))
    assert (done.returncode, done.stderr.decode()) == (1, f"backup-service: --output {file}: File too large\n")
    assert (file.read_text(), list(tmp_path.iterdir())) == ("before", [file])
