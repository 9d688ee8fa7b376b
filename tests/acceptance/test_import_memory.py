"""Imports in an address space of the size that docs/importing.md states: large listings pass, and crafted ones end in one clear error."""

import itertools
import json
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.support import processes
from tests.support.catalog import Sql
from tests.support.commands import Done, environment
from tests.support.gpbackup_history import ROW, open_history, write_history
from tests.support.repository import ROOT

_LIMIT_KIB = {"walg": 192 << 10, "gpbackup": 384 << 10}  # docs/importing.md
_ENTRY = json.loads((ROOT / "samples" / "walg-backup-list.json").read_bytes())[0]
_ELEMENT_MAX = 1 << 20

_Import: TypeAlias = Callable[..., Awaitable[Done]]


@pytest.fixture(name="imported")
def _imported(import_url: str) -> _Import:
    """Run an import of a file with a limited address space."""

    async def run(tool: str, file: Path, *arguments: str) -> Done:
        command = [sys.executable, "-m", "service", "import", tool, str(file), "--folder-id", "f1", "--cluster-id", "c1", *arguments]
        done = await processes.run(
            *("/bin/sh", "-c", f'ulimit -v {_LIMIT_KIB[tool]}; exec "$@"', "sh", *command),
            cwd=ROOT,
            env=environment(BACKUPS_DATABASE_URL=import_url),
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


def _rejection(done: Done) -> str:
    assert (done.status, done.stdout) == (1, ""), done
    [line] = done.stderr.splitlines()
    assert line.startswith("backup-service: ")
    return line.removeprefix("backup-service: ")


# WAL-G


def _listing(file: Path, elements: Iterable[str]) -> Path:
    with file.open("w", encoding="utf-8") as stream:
        stream.write("[")
        for number, element in enumerate(elements):
            stream.write("," * bool(number) + element)
        stream.write("]\n")
    return file


def _week_day(number: int) -> str:
    """Return a full backup, or an increment of the previous entry."""
    parent = {"increment_from": _name(number - 1)} if number % 7 else {}
    return json.dumps(_ENTRY | {"Name": _name(number)} | parent, separators=(",", ":"))


def _name(number: int) -> str:
    return f"backup_{20200101 + number // 86400:08}T{number % 86400:06}Z"


@pytest.mark.timeout(300)
async def test_a_long_listing_on_one_line(imported: _Import, sql: Sql, tmp_path: Path, *, long: bool) -> None:
    """100,000 entries on a single line, in the long form a million, are imported in the stated memory. Six of seven are increments."""
    count = 1_000_000 if long else 100_000
    file = _listing(tmp_path / "listing.json", (_week_day(number) for number in range(count)))
    done = await imported("walg", file)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Imported cluster c1 into folder f1: {count} added, ")
    assert await sql.fetchval("SELECT count(*) FROM backups") == count


def _user_data(start: str, part: str, end: str) -> str:
    """Return an entry of almost the largest size, whose user data is a repeated part."""
    before = json.dumps(_ENTRY)[:-1] + ', "user_data": ' + start
    return before + part * ((_ELEMENT_MAX - len(before) - len(end) - 1) // len(part)) + end + "}"


def _many_keys() -> str:
    before = json.dumps(_ENTRY)[:-1] + ', "user_data": {'
    return before + ",".join(f'"{number:06x}":{{}}' for number in range((_ELEMENT_MAX - len(before) - 2) // 12)) + "}}"


_LARGEST: dict[str, Callable[[], str]] = {
    "arrays": lambda: _user_data("[", "[],", "0]"),
    "objects": _many_keys,
    "numbers": lambda: _user_data("[", "1.5,", "0]"),
    "texts": lambda: _user_data("[", '"\u0436",', "0]"),
    "wide text": lambda: _user_data('"\U0001f600', "x", '"'),
    "escapes": lambda: _user_data('"', "\\u0436", '"'),
}


@pytest.mark.parametrize("kind", _LARGEST)
async def test_the_largest_entries(imported: _Import, tmp_path: Path, kind: str) -> None:
    """Entries of almost 1 MiB are imported, even with the content that takes the most memory once it is parsed."""
    done = await imported("walg", _listing(tmp_path / "listing.json", itertools.repeat(_LARGEST[kind](), 3)))
    assert (done.status, done.stderr) == (0, "")


_16_MIB = 16 << 20


@pytest.mark.parametrize(
    ("start", "part", "message"),
    [
        ('[{"Name":"', "x", "more than 1048576 characters"),
        ('[{"Name":"\U0001f600', "x", "more than 1048576 characters"),
        ('[{"a":[', "[],", "more than 1048576 characters"),
        ('[{"a":[', "1.5,", "more than 1048576 characters"),
        ("[{", '"a":{},', "more than 1048576 characters"),
        ('[{"a":', "[", "JSON that cannot be parsed"),
        ('[{"a":', '{"a":', "JSON that cannot be parsed"),
        ('[{"a":', "9", "more than 1048576 characters|JSON that cannot be parsed"),
        ("[", " ", "the input ends early"),
        ("", "x", "the input is something else"),
        ("", "[", "not a JSON object"),
    ],
)
async def test_crafted_listings(imported: _Import, tmp_path: Path, start: str, part: str, message: str) -> None:
    """16 MiB of one endless text, array, object, number or nesting are rejected in one line."""
    file = tmp_path / "listing.json"
    file.write_text(start + part * (_16_MIB // len(part)), encoding="utf-8")
    found = _rejection(await imported("walg", file))
    assert any(each in found for each in message.split("|")), found


# gpbackup

_TIME_OF_ROW = "strftime('%Y%m%d%H%M%S', 1600000000 + 600 * i, 'unixepoch')"
_OPTIONS = ("--timezone", "Europe/Berlin")


@pytest.fixture(name="history")
def _history(tmp_path: Path) -> Path:
    return tmp_path / "gpbackup_history.db"


def _numbers(count: int) -> str:
    return f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"


def _multiply(path: Path, count: int, **columns: str) -> Path:
    """Add rows to a history: timestamps that count up, the columns given as SQL over `i`, the others as in `ROW`."""
    values = {name: repr(value) for name, value in ROW.items()} | {"timestamp": "printf('2020%010d', i)"} | columns
    with open_history(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(f"INSERT INTO backups ({', '.join(values)}) {_numbers(count)} SELECT {', '.join(values.values())} FROM n")
    return path


async def test_a_long_history(imported: _Import, history: Path) -> None:
    """30,000 rows, of which 3,000 are unusable for a reason of their own, are read in the stated memory."""
    status = "CASE i % 10 WHEN 0 THEN 'odd ' || i ELSE 'Failure' END"
    _multiply(write_history(history, {}), 29_999, timestamp=_TIME_OF_ROW, status=status)
    done = await imported("gpbackup", history, "--timezone", "Etc/UTC")
    assert (done.status, done.stderr) == (0, ""), done.stderr
    assert "1 added, 0 changed, 0 unchanged, 0 removed, 29999 skipped" in done.stdout


async def test_a_reason_for_each_row(imported: _Import, history: Path) -> None:
    """30,000 rows that are all unusable, each for a reason of its own, are rejected in the stated memory with the first reason."""
    _multiply(write_history(history), 30_000, timestamp=_TIME_OF_ROW, status="'odd ' || i")
    found = _rejection(await imported("gpbackup", history, "--timezone", "Etc/UTC"))
    assert found.startswith("30000 of 30000 entries are unusable")


@pytest.mark.parametrize(
    "text",
    ["char(128512) || printf('%.*c', 60000, 'x')", "CAST(replace(hex(zeroblob(30000)), '0', x'ff') AS TEXT)"],
    ids=["of four bytes a character once decoded", "not UTF-8"],
)
async def test_long_texts(imported: _Import, history: Path, text: str) -> None:
    """42 MB of texts that grow fourfold when they are decoded are imported in the stated memory."""
    _multiply(write_history(history), 700, timestamp=_TIME_OF_ROW, end_time=_TIME_OF_ROW, backup_dir=text)
    done = await imported("gpbackup", history, "--timezone", "Etc/UTC")
    assert (done.status, done.stderr) == (0, "")
    assert "700 added" in done.stdout


def _many_rows(path: Path) -> None:
    nothing = dict.fromkeys((name for name in ROW if name != "timestamp"), "NULL")
    _multiply(write_history(path), 600_000, **nothing)


def _long_defaults(path: Path) -> None:
    """Write rows without a value for the last column, which take a few bytes in the file and 60,000 when they are read."""
    with open_history(path) as connection:
        columns = ", ".join(f"{name} TEXT" for name in ROW if name != "plugin")
        connection.execute(f"CREATE TABLE backups ({columns})")
        connection.execute(f"INSERT INTO backups (timestamp) {_numbers(20000)} SELECT i FROM n")
        connection.execute(f"ALTER TABLE backups ADD COLUMN plugin TEXT DEFAULT '{'x' * 60_000}'")


def _large_schema(path: Path) -> None:
    """Write 48 MB of statements, which SQLite keeps in memory once it has read them."""
    write_history(path, {})
    with open_history(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            f"INSERT INTO sqlite_schema {_numbers(800)} SELECT 'table', 't' || i, 't' || i, 2, "
            "'CREATE TABLE t' || i || '(x DEFAULT ' || quote(printf('%.*c', 60000, 'x')) || ')' FROM n"
        )


def _huge_value(path: Path) -> None:
    """Write a value that SQLite need not hold in memory, because earlier imports have lowered the memory limit of this process."""
    write_history(path, {})
    with open_history(path) as connection:
        connection.execute("UPDATE backups SET status = zeroblob(49000000)")


def _generated_column(path: Path) -> None:
    with open_history(path) as connection:
        columns = ", ".join(f"{name} TEXT" for name in ROW if name != "timestamp")
        connection.execute(f"CREATE TABLE backups ({columns}, timestamp TEXT AS (printf('%.*c', 60000, 'x')))")
        connection.execute(f"INSERT INTO backups (status) {_numbers(9000)} SELECT i FROM n")


def _endless_view(path: Path) -> None:
    """Write a view that the file declares to be a table."""
    write_history(path, {})
    columns = ", ".join(f"i AS {name}" for name in ROW)
    view = f"CREATE VIEW backups AS WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT {columns} FROM n"
    with open_history(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'backups'", (view,))


_TOO_MUCH = "its rows take more than 128 MiB of memory"


@pytest.mark.parametrize(
    ("craft", "message"),
    [
        (_many_rows, _TOO_MUCH),
        (_long_defaults, _TOO_MUCH),
        (_large_schema, "SQLite needs more than 32 MiB"),
        (_huge_value, "too big"),
        (_generated_column, "has no column timestamp"),
        (_endless_view, "damaged or incomplete"),
    ],
)
async def test_crafted_histories(imported: _Import, history: Path, craft: Callable[[Path], None], message: str) -> None:
    """A history that is made to take much memory or time once it is read is rejected in one line, however busy the machine is."""
    craft(history)
    found = _rejection(await imported("gpbackup", history, *_OPTIONS))
    assert message in found, found
