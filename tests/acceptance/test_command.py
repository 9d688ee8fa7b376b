"""The command in its own process, with a real server and database."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.server import Server
from tests.support import processes
from tests.support.catalog import AddBackups, Sql
from tests.support.commands import Done, RunCommand, environment
from tests.support.eventually import eventually
from tests.support.ports import free_ports
from tests.support.repository import ROOT

_SAMPLE = (ROOT / "samples" / "walg-backup-list.json").read_bytes()
_ENTRY = json.loads(_SAMPLE)[0]
_OF_C1 = ("--folder-id", "f1", "--cluster-id", "c1")


class _Cli:
    """The command with the address of the test's server and the URL of its database."""

    def __init__(self, run: RunCommand, import_url: str, server: Server) -> None:
        self._run = run
        self._settings = {"BACKUPS_DATABASE_URL": import_url, "BACKUPS_ADDRESS": str(server.address)}

    async def __call__(self, *arguments: str, stdin: bytes = b"") -> Done:
        return await self._run(*arguments, stdin=stdin, **self._settings)

    async def error(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run a command that fails with status 1 and prints nothing else; return its error message."""
        done = await self(*arguments, stdin=stdin)
        assert (done.status, done.stdout) == (1, "")
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("backup-service: ")
        return done.stderr.removeprefix("backup-service: ").rstrip("\n")


@pytest.fixture(name="cli")
def _cli(command: RunCommand, import_url: str, server: Server) -> _Cli:
    return _Cli(command, import_url, server)


async def test_import_and_list(cli: _Cli, tmp_path: Path) -> None:
    """A listing is imported from a file or standard input; a second import changes nothing; `list` shows the newest backup first."""
    file = tmp_path / "listing.json"
    file.write_bytes(_SAMPLE)
    added = await cli("import", "walg", str(file), *_OF_C1)
    assert (added.status, added.stderr) == (0, "")
    assert added.stdout == "Imported cluster c1 into folder f1: 4 added, 0 changed, 0 unchanged, 0 removed, 0 skipped.\n"

    again = await cli("import", "walg", *_OF_C1, stdin=_SAMPLE)
    assert again.stdout.splitlines() == [
        "Imported cluster c1 into folder f1: 0 added, 0 changed, 4 unchanged, 0 removed, 0 skipped.",
        "The catalog is already up to date.",
    ]

    listed = await cli("list", "--folder-id", "f1")
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert rows[0] == ["ID", "CLUSTER", "COMPLETED", "AGE", "DURATION", "METHOD", "SIZE"]
    assert [row[0] for row in rows[1:]] == [
        "c9q3vd0k8m1nt5rj2hfe",
        "c1:backup_20261122T031502Z_D",
        "c1:backup_20261121T031502Z_D",
        "c1:backup_20261120T031501Z",
    ]
    assert "2026-11-23 20:02:11Z" in listed.stdout
    assert listed.stdout.splitlines()[1].endswith(" 851.0 GiB")


async def test_pages_of_a_list(cli: _Cli, add_backups: AddBackups) -> None:
    """A page ends with its next page token, --page-token continues there, and --all prints all pages."""
    backups = await add_backups(25)
    ids = [backup.id for backup in backups]

    one = await cli("list", "--folder-id", "f1", "--page-size", "10")
    assert [line.split()[0] for line in one.stdout.splitlines()[1:]] == ids[:10]
    hint = one.stderr.strip()
    assert hint.startswith("There are more: --all, or --page-token ")
    rest = await cli("list", "--folder-id", "f1", "--page-token", hint.split()[-1])
    assert [line.split()[0] for line in rest.stdout.splitlines()[1:]] == ids[10:]

    every = await cli("list", "--folder-id", "f1", "--page-size", "10", "--all")
    assert ([line.split()[0] for line in every.stdout.splitlines()[1:]], every.stderr) == (ids, "")


async def test_list_by_cluster_and_time(cli: _Cli, add_backups: AddBackups) -> None:
    """--cluster-id lists one cluster's backups, and --since and --until those of a time range over all pages, as a table and as JSON."""
    backups = await add_backups(25, source_cluster_id="c2", size=0)
    await add_backups(2)
    ids = [backup.id for backup in backups]
    of_c2 = ("list", "--cluster-id", "c2", "--page-size", "4")

    every = await cli(*of_c2, "--all")
    assert ([line.split()[0] for line in every.stdout.splitlines()[1:]], every.stderr) == (ids, "")
    assert every.stdout.splitlines()[1].split()[-2:] == ["-", "-"]  # neither the method nor the size is known

    times = ("--since", backups[9].created_at.isoformat(), "--until", backups[2].created_at.isoformat())
    assert [line.split()[0] for line in (await cli(*of_c2, *times)).stdout.splitlines()[1:]] == ids[3:10]
    page = json.loads((await cli(*of_c2, *times, "--json")).stdout)
    assert [backup["id"] for backup in page["backups"]] == ids[3:10]
    assert page.keys() == {"backups"}
    in_folder = await cli("list", "--folder-id", "f1", *times)
    assert set(ids[3:10]) <= {line.split()[0] for line in in_folder.stdout.splitlines()}

    none = await cli("list", "--cluster-id", "none")
    assert (none.status, none.stdout, none.stderr) == (0, "", "No backups of cluster none.\n")


async def test_list_of_one_owner(cli: _Cli) -> None:
    """`list` requires either a folder or a cluster, and times with an offset."""
    for arguments in ((), ("--folder-id", "f1", "--cluster-id", "c1"), ("--folder-id", "f1", "--since", "yesterday")):
        done = await cli("list", *arguments)
        assert (done.status, done.stdout) == (2, "")
        assert ("--cluster-id" if "--since" not in arguments else "2026-11-20T00:00:00Z") in done.stderr
        assert "Traceback" not in done.stderr


async def test_json(cli: _Cli, add_backups: AddBackups) -> None:
    """--json prints protobuf's JSON of one page with its token, of all pages, of an empty list and of one backup."""
    [*_, oldest] = await add_backups(5)

    page = json.loads((await cli("list", "--folder-id", "f1", "--page-size", "2", "--json")).stdout)
    assert len(page["backups"]) == 2
    assert page["nextPageToken"]
    every = json.loads((await cli("list", "--folder-id", "f1", "--page-size", "2", "--all", "--json")).stdout)
    assert len(every["backups"]) == 5
    assert "nextPageToken" not in every
    assert json.loads((await cli("list", "--folder-id", "none", "--json")).stdout) == {"backups": []}
    one = json.loads((await cli("get", oldest.id, "--json")).stdout)
    assert one == every["backups"][-1]
    assert one["size"] == str(oldest.size)
    assert one["createdAt"] == oldest.created_at.isoformat().replace("+00:00", "Z")


async def test_get(cli: _Cli, add_backups: AddBackups) -> None:
    """`get` prints a line for each field."""
    [backup] = await add_backups(1)
    done = await cli("get", backup.id)
    assert dict(line.split(maxsplit=1) for line in done.stdout.splitlines())["id"] == backup.id


async def test_errors_of_the_service(cli: _Cli) -> None:
    """For an error of the service, the status, the message, the request id and every violation are printed."""
    message = await cli.error("list", "--folder-id", "f" * 51, "--page-size", "1001")
    lines = message.splitlines()
    assert lines[0] == "INVALID_ARGUMENT: The request violates limits of the API."
    assert lines[1].startswith("  request id: ")
    assert lines[2:] == ["  folder_id: Must have 0 to 50 characters.", "  page_size: Must be from 0 to 1000."]

    assert (await cli.error("get", "none")).startswith("NOT_FOUND: There is no such backup.")
    assert (await cli.error("list", "--folder-id", "f" * 51, "--json")).startswith("INVALID_ARGUMENT: ")


async def test_health(cli: _Cli, start_server: Any) -> None:
    """`health` exits with 0 if the server is ready, and with 1 and a message if it is not."""
    await eventually(lambda: cli("health"), Done(0, "SERVING\n", ""), timeout_s=20)
    async with start_server(database_url="postgresql://127.0.0.1:1/none") as down:
        assert "is not ready" in await cli.error("health", "--address", str(down.address))


async def test_closed_pipe(cli: _Cli, command: RunCommand, server: Server, add_backups: AddBackups) -> None:
    """A command whose output pipe is closed early, as by `head`, ends without a message."""
    await add_backups(1000)
    pipeline = f"{sys.executable} -m service list --folder-id f1 --page-size 100 --all | head -n 1"
    done = await processes.run("/bin/sh", "-c", pipeline, cwd=ROOT, env=environment(BACKUPS_ADDRESS=str(server.address)))
    assert done.stdout.startswith(b"ID ")
    assert done.stderr == b""


async def test_locale_without_the_characters(command: RunCommand, server: Server, add_backups: AddBackups) -> None:
    """Characters that the encoding of the locale lacks are escaped."""
    await add_backups(1, source_cluster_id="кластер")
    done = await command(
        "list", "--folder-id", "f1", BACKUPS_ADDRESS=str(server.address), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"
    )
    assert done.status == 0
    assert "\\u043a" in done.stdout


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (b"", "the input is empty"),
        (_SAMPLE[:-5], "the input ends early, after 3 whole entries"),
        (b"INFO: 2026/11/20 09:00:00.000001 Using storages: [default]\n" + _SAMPLE, "line 1 is a line of WAL-G's log"),
        (
            json.dumps([_ENTRY, _ENTRY | {"compressed_size": -1}]).encode(),
            "entry 2 ('backup_20261120T031501Z'): compressed_size: -1 is not",
        ),
        (json.dumps([_ENTRY, _ENTRY | {"compressed_size": 1}]).encode(), "differ, but have the same id c1:backup_20261120T031501Z"),
    ],
)
async def test_rejected_imports(cli: _Cli, sql: Sql, listing: bytes, message: str) -> None:
    """A listing that cannot be imported exits with 1 and the reason, and writes nothing."""
    assert message in await cli.error("import", "walg", *_OF_C1, stdin=listing)
    assert await sql.fetchval("SELECT count(*) FROM backups") == 0
    assert await sql.fetchval("SELECT count(*) FROM imports") == 0


async def test_import_options(cli: _Cli, sql: Sql) -> None:
    """--prune, --prune-any, --dry-run, --move-folder and --id-prefix have the documented effects."""
    await cli("import", "walg", *_OF_C1, stdin=_SAMPLE)
    one = json.dumps(json.loads(_SAMPLE)[:1]).encode()

    assert "--prune-any needs --prune" in (await cli("import", "walg", *_OF_C1, "--prune-any", stdin=one)).stderr
    rejected = await cli.error("import", "walg", *_OF_C1, "--prune", stdin=one)
    assert rejected.startswith("3 of this cluster's 4 backups are not in the listing")
    dry = await cli("import", "walg", *_OF_C1, "--prune", "--dry-run", stdin=one)
    assert dry.stdout.splitlines()[0] == "Would import cluster c1 into folder f1: 0 added, 0 changed, 1 unchanged, 3 removed, 0 skipped."
    assert "The import would be rejected: 3 of this cluster's 4" in dry.stdout
    assert await sql.fetchval("SELECT count(*) FROM backups") == 4
    done = await cli("import", "walg", *_OF_C1, "--prune", "--prune-any", stdin=one)
    assert "3 removed" in done.stdout

    assert "--move-folder" in await cli.error("import", "walg", "--folder-id", "f2", "--cluster-id", "c1", stdin=one)
    moved = await cli("import", "walg", "--folder-id", "f2", "--cluster-id", "c1", "--move-folder", stdin=one)
    assert "1 moved to this folder" in moved.stdout

    uuid = "6f1c2d3e-4b5a-6978-8796-a5b4c3d2e1f0"
    assert "--id-prefix" in await cli.error("import", "walg", "--folder-id", "f1", "--cluster-id", uuid, stdin=one)
    done = await cli("import", "walg", "--folder-id", "f1", "--cluster-id", uuid, "--id-prefix", "c7", stdin=one)
    assert done.status == 0
    assert await sql.fetchval("SELECT id FROM backups WHERE source_cluster_id = $1", uuid) == "c7:backup_20261120T031501Z"


async def test_import_of_a_missing_file(cli: _Cli) -> None:
    """A missing file is an error of one line with its name."""
    assert await cli.error("import", "walg", "/none/listing.json", *_OF_C1) == "/none/listing.json: No such file or directory"


async def test_future_dates_and_any_order(cli: _Cli) -> None:
    """A backup dated in the future is imported and listed first; the order of the listing does not matter."""
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    listing = json.loads(_SAMPLE)
    listing[1] |= {"finish_time": soon.isoformat().replace("+00:00", "Z")}
    await cli("import", "walg", *_OF_C1, stdin=json.dumps(listing[::-1]).encode())
    rows = (await cli("list", "--folder-id", "f1")).stdout.splitlines()
    assert rows[1].startswith("c1:backup_20261121T031502Z_D ")
    assert " -1h 59m " in rows[1]


async def _on_a_terminal(*arguments: str, **settings: str) -> str:
    """Run a command whose standard streams are a terminal; return its output."""
    leader, follower = pty.openpty()
    try:
        async with processes.running(
            *(sys.executable, "-m", "service", *arguments),
            cwd=ROOT,
            env=environment(**settings),
            stdin=follower,
            stdout=follower,
            stderr=follower,
        ) as process:
            os.close(follower)
            assert await process.wait() == 0
        return os.read(leader, 65536).decode()
    finally:
        os.close(leader)


async def test_progress_on_a_terminal(import_url: str, tmp_path: Path) -> None:
    """On a terminal an import shows a progress bar, and only the summary stays; with TERM=dumb it prints only the summary."""
    file = tmp_path / "listing.json"
    file.write_bytes(_SAMPLE)
    arguments = ("import", "walg", str(file), *_OF_C1)
    printed = await _on_a_terminal(*arguments, BACKUPS_DATABASE_URL=import_url, TERM="xterm")
    assert "Importing" in printed
    assert "4 added" in printed
    printed = await _on_a_terminal(*arguments, BACKUPS_DATABASE_URL=import_url, TERM="dumb")
    assert printed.startswith("Imported cluster c1")
    assert "\x1b" not in printed


@pytest.mark.parametrize("settings", [{}, {"NO_COLOR": "1"}])
async def test_list_on_a_terminal(server: Server, add_backups: AddBackups, settings: dict[str, str]) -> None:
    """On a terminal of 60 columns, `list` leaves out columns that do not fit, names them, and prints no colours."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    for number in range(3):
        await add_backups(id=f"backup-1-00000{number}", created_at=yesterday)
    address = str(server.address)
    printed = await _on_a_terminal("list", "--folder-id", "f1", BACKUPS_ADDRESS=address, TERM="xterm", COLUMNS="60", **settings)
    *table, note = printed.splitlines()
    assert max(map(len, table)) <= 60
    assert note == "Left out, because the terminal is too narrow: DURATION, METHOD, CLUSTER. Use --json or a pipe to see all."
    assert "\x1b" not in printed


async def test_dry_run_of_migrate(command: RunCommand) -> None:
    """`migrate --dry-run` prints SQL and needs no database."""
    done = await command("migrate", "--dry-run")
    assert (done.status, done.stderr) == (0, "")
    assert "CREATE TABLE backups" in done.stdout


@pytest.mark.parametrize("arguments", [["serve"], ["migrate"], ["import", "walg", *_OF_C1]])
async def test_no_database_url(command: RunCommand, arguments: list[str]) -> None:
    """A command that needs BACKUPS_DATABASE_URL fails with one line if it is not set."""
    done = await command(*arguments, stdin=_SAMPLE)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr == "backup-service: BACKUPS_DATABASE_URL is not set (postgresql://user:password@host:port/database)\n"


async def test_bad_settings(command: RunCommand) -> None:
    """A bad setting is an error at the start, with its name and without its value."""
    done = await command("serve", BACKUPS_PAGE_TOKEN_KEY="hunter2", BACKUPS_POOL_SIZE="0")
    assert done.status == 1
    assert "BACKUPS_PAGE_TOKEN_KEY: must be base64" in done.stderr
    assert "BACKUPS_POOL_SIZE: " in done.stderr
    assert "hunter2" not in done.stderr


def _serve(database_url: str, port: int) -> contextlib.AbstractAsyncContextManager[processes.Process]:
    return processes.running(
        *(sys.executable, "-m", "service", "serve"),
        cwd=ROOT,
        env=environment(BACKUPS_DATABASE_URL=database_url, BACKUPS_LISTEN=f"127.0.0.1:{port}"),
        stderr=subprocess.PIPE,
    )


async def test_serve_until_sigterm(database_url: str, command: RunCommand) -> None:
    """`serve` logs JSON and exits with 0 after SIGTERM; a second server on the same port fails with one clear line."""
    [port] = free_ports(1)
    async with _serve(database_url, port) as process:
        assert process.stderr
        assert json.loads(await asyncio.wait_for(process.stderr.readline(), 20))["event"] == "listening"
        assert json.loads(await asyncio.wait_for(process.stderr.readline(), 20))["event"] == "serving"

        second = await command("serve", BACKUPS_DATABASE_URL=database_url, BACKUPS_LISTEN=f"127.0.0.1:{port}")
        assert second.status == 1
        [line] = [line for line in second.stderr.splitlines() if line.startswith("backup-service: ")]
        assert f"Cannot listen on 127.0.0.1:{port}. If another process uses it, set BACKUPS_LISTEN to another address" in line

        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        rest = [json.loads(line)["event"] for line in (await process.stderr.read()).splitlines()]
        assert rest == ["not serving", "stopped"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["dev"],
        ["migrate", "--dry-run"],
        ["import", "walg", "--folder-id", "f", "--cluster-id", "c"],
        ["status"],
        ["chain", "b"],
        ["report", "--output", "/none/report.html"],
        ["remove-cluster", "--cluster-id", "c"],
        ["list", "--folder-id", "f"],
        ["get", "b"],
        ["health"],
    ],
)
async def test_misspelt_settings(command: RunCommand, arguments: list[str]) -> None:
    """Every command rejects a misspelt variable, with the nearest known name."""
    done = await command(*arguments, BACKUPS_TLS_CLIENTCA="/f")
    assert done.status == 1
    assert done.stderr == "backup-service: BACKUPS_TLS_CLIENTCA is not a setting: the nearest one is BACKUPS_TLS_CLIENT_CA\n"


async def test_unknown_settings(command: RunCommand) -> None:
    """Other unknown variables are a warning: on standard error for a command, in the log for a server."""
    done = await command("migrate", "--dry-run", BACKUPS_RETENTION_POLICY="x", BACKUPS_PORT_50051_TCP="tcp://10.0.0.1:50051")
    assert done.status == 0
    assert done.stderr == "backup-service: warning: BACKUPS_RETENTION_POLICY is not a setting, and is ignored\n"
    done = await command(
        "serve", BACKUPS_RETENTION_POLICY="x", BACKUPS_DATABASE_URL="postgresql://u@h/d?sslmode=disable", BACKUPS_LISTEN="0.0.0.0:0"
    )
    logged = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [line["problem"] for line in logged if line["event"] == "questionable setting"] == [
        "BACKUPS_RETENTION_POLICY is not a setting, and is ignored",
        "sslmode=disable sends everything in plaintext to h:5432: use sslmode=verify-full",
    ]
