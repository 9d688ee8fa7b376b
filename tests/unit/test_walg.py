"""WAL-G's listing, entry by entry; the cases are those that its users met."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.entry import Entry, Skipped
from service.errors import InvalidEntry, InvalidIdPrefix, InvalidListing
from service.importers import walg
from tests.support.repository import ROOT

_ENTRY = {
    "Name": "backup_20261120T031501Z",
    "start_time": "2026-11-20T00:15:01.287495Z",
    "finish_time": "2026-11-20T02:41:58.826199Z",
    "is_permanent": False,
    "uncompressed_size": 9,
    "compressed_size": 5,
    "data_catalog_size": 12,
}
_ABSENT = object()


def _with(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (_ENTRY | changes).items() if value is not _ABSENT}


def _read(listing: bytes | list[dict[str, Any]], *, id_prefix: str = "c1") -> list[Entry | Skipped]:
    data = listing if isinstance(listing, bytes) else json.dumps(listing).encode() + b"\n"
    return list(walg.read(io.BytesIO(data), id_prefix=id_prefix))


def _only(**changes: Any) -> Entry:
    [entry] = _read([_with(**changes)])
    assert isinstance(entry, Entry)
    return entry


def test_sample() -> None:
    """The sample's four backups: a full one, two increments, and one that a control plane has named."""
    with Path(ROOT, "samples/walg-backup-list.json").open("rb") as stream:
        entries = list(walg.read(stream, id_prefix="c1"))

    assert [(entry.id, entry.size) for entry in entries if isinstance(entry, Entry)] == [
        ("c1:backup_20261120T031501Z", 912177820331),
        ("c1:backup_20261121T031502Z_D", 25325704421),
        ("c1:backup_20261122T031502Z_D", 22116874035),
        ("c9q3vd0k8m1nt5rj2hfe", 913800120559),
    ]


def test_pretty_and_compact_are_the_same() -> None:
    """Spacing does not matter."""
    assert _read(json.dumps([_ENTRY], indent=4).encode()) == _read(json.dumps([_ENTRY], separators=(",", ":")).encode())


def test_times_come_from_the_fields() -> None:
    """The name is in the coordinator's local time, though it ends in Z: it says 03:15, and the backup began at 00:15 UTC."""
    assert _only().started_at == datetime(2026, 11, 20, 0, 15, 1, 287495, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-22T00:39:40Z", datetime(2026, 11, 22, 0, 39, 40, tzinfo=UTC)),
        ("2026-11-22T00:47:27.8036Z", datetime(2026, 11, 22, 0, 47, 27, 803600, tzinfo=UTC)),
        ("2026-11-20T05:41:58.826198431+03:00", datetime(2026, 11, 20, 2, 41, 58, 826198, tzinfo=UTC)),
        ("2026-11-20T00:41:58.999999999-11:30", datetime(2026, 11, 20, 12, 11, 58, 999999, tzinfo=UTC)),
        ("2026-11-20t02:41:58z", datetime(2026, 11, 20, 2, 41, 58, tzinfo=UTC)),
    ],
)
def test_fractions_and_offsets(text: str, time: datetime) -> None:
    """A time has any number of digits and any offset; it is cut to microseconds."""
    assert _only(finish_time=text).created_at == time


@pytest.mark.parametrize("field", ["start_time", "finish_time"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        "2026-11-20",
        "2026-11-20 02:41:58Z",
        "2026-11-20T02:41:58",
        "20261120T024158Z",
        "2026-W47-5T02:41:58Z",
        "2026-13-20T02:41:58Z",
        "2026-02-30T02:41:58Z",
        "2026-11-20T24:41:58Z",
        "2026-11-20T02:41:60Z",
        "2026-11-20T02:41:58.1234567890Z",
        "2026-11-20T02:41:58+25:00",
        "\u0662026-11-20T02:41:58Z",
        1763600000,
        None,
        True,
        [],
        _ABSENT,
        "1969-12-31T23:59:59Z",
        "9999-12-31T23:59:59.999999Z",
        "9999-12-31T23:59:59-00:01",
        "0001-01-01T00:00:00+00:01",
    ],
)
def test_bad_times(field: str, value: object) -> None:
    """What is no time, or none that the API can say, stops the import and names entry, field and reason."""
    with pytest.raises(InvalidEntry) as caught:
        _read([_ENTRY, _with(**{field: value})])
    assert caught.value.field == field
    assert caught.value.entry == "entry 2 ('backup_20261120T031501Z')"
    assert "Nothing was imported" in str(caught.value)


def test_times_at_the_ends() -> None:
    """1970 and the last microsecond but one of 9999 are within what the API can say."""
    entry = _only(start_time="1970-01-01T00:00:00Z", finish_time="9999-12-31T23:59:59.999998Z")
    assert (entry.started_at.year, entry.created_at.year) == (1970, 9999)


def test_ends_before_it_starts() -> None:
    """A backup that was completed before it was started is an error of its start."""
    with pytest.raises(InvalidEntry, match="start_time: 2026-11-20T02:41:58.826200"):
        _read([_with(start_time="2026-11-20T02:41:58.826200Z")])
    assert _only(start_time=_ENTRY["finish_time"]).size == 5


def test_backup_from_before_times_were_recorded() -> None:
    """An entry without a finish time is skipped and counted; it never becomes year 1, 1970, or a time taken from its name."""
    old = _with(Name="backup_20210801T031501Z", start_time="0001-01-01T00:00:00Z", finish_time="0001-01-01T00:00:00Z", compressed_size=0)
    skipped, entry = _read([old, _ENTRY])
    assert skipped == Skipped("finish time unknown: made by a WAL-G of before September 2021")
    assert isinstance(entry, Entry)


def test_old_and_new_fields_together() -> None:
    """Keys that are unknown, missing or too large for an int64 do no harm where nothing depends on them."""
    old = {
        "Name": "backup_20220101T031501Z",
        "start_time": "2022-01-01T00:15:01Z",
        "finish_time": "2022-01-01T01:00:00Z",
        "compressed_size": 5,
        "gp_version": "6.17.5",
    }
    new = _with(
        gp_version="cloudberry (2.0.0)", gp_flavor="cloudberry", system_identifier=15732920503173015521, added_later={"x": 1}, user_data={}
    )
    assert len(_read([old, new])) == 2


@pytest.mark.parametrize("user_data", ["xyz", [3], 7, {"backup_id": 5}, {"backup_id": ""}, {"backup_id": None}, {"x": [3], "y": 4}, None])
def test_user_data_without_an_id(user_data: object) -> None:
    """User data that is no control plane's id leaves the id to cluster and name."""
    assert _only(user_data=user_data).id == "c1:backup_20261120T031501Z"


@pytest.mark.parametrize("backup_id", ["x", "x" * 50, "c9q3vd0k8m1nt5rj2hfe", "!~"])
def test_user_data_with_an_id(backup_id: str) -> None:
    """A control plane's id is taken as it is."""
    assert _only(user_data={"backup_id": backup_id}).id == backup_id


@pytest.mark.parametrize("backup_id", ["x" * 51, "a\0b", "a b", "\u0436", "a\n", "\ud800"])
def test_user_data_with_an_id_that_cannot_be(backup_id: str) -> None:
    """An id that the control plane knows must not be altered: one that cannot be is an error, in one line."""
    with pytest.raises(InvalidEntry) as caught:
        _read([_with(user_data={"backup_id": backup_id})])
    assert caught.value.field == "user_data.backup_id"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backup_id", ["c1:x", "c1:backup_20261120T031501Z", "c1:"])
def test_given_ids_of_this_import(backup_id: str) -> None:
    """A given id may begin with the prefix of this import."""
    assert _only(user_data={"backup_id": backup_id}).id == backup_id


@pytest.mark.parametrize(
    ("prefix", "backup_id"),
    [
        ("c1", "c2:backup_20261120T031501Z"),
        ("c1", "c2:x"),
        ("c1", ":x"),
        ("c1", "C1:x"),
        ("c1", "c1:c2:backup_20261120T031501Z"),  # of an import with the prefix c1:c2
        ("c1:c2", "c1:backup_20261120T031501Z"),
        ("c1", "urn:uuid:6f1c2d3e"),
    ],
)
def test_given_ids_of_other_imports(prefix: str, backup_id: str) -> None:
    """A listing cannot take an id that the import of another cluster would make, now or later."""
    with pytest.raises(InvalidEntry, match="has the form of the ids that an import with the prefix") as caught:
        _read([_with(user_data={"backup_id": backup_id})], id_prefix=prefix)
    assert caught.value.field == "user_data.backup_id"


@pytest.mark.parametrize("size", [0, 1, 2**53 - 1])
def test_sizes(size: int) -> None:
    """Zero is a size, and so is the largest that an int64 holds."""
    assert _only(compressed_size=size).size == size


@pytest.mark.parametrize("size", [_ABSENT, -1, 1.5, "5", True, 2**53, None, [], 5.0, 10**400])
def test_bad_sizes(size: object) -> None:
    """What is no whole number of bytes within an int64 is refused; True is 1 to Python only."""
    with pytest.raises(InvalidEntry) as caught:
        _read([_with(compressed_size=size)])
    assert caught.value.field == "compressed_size"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "name",
    [
        _ABSENT,
        None,
        5,
        "",
        "base_000000010000000000000002",
        "backup_20261120T031501",
        "backup_20261120T031501Z_D",
        "backup_20261120T031501Z_D_20261119T031501Z_D_20261118T031501Z",
        "backup_20261120T031501Z\n",
        "x" * 10_000,
        "\x1b[2J",
    ],
)
def test_bad_names(name: object) -> None:
    """What is not named like a backup of Greenplum is refused, and a terminal is safe from it."""
    with pytest.raises(InvalidEntry) as caught:
        _read([_with(Name=name)])
    assert caught.value.field == "Name"
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_full_and_incremental_can_share_a_time() -> None:
    """When clocks go back, a full and an incremental backup can have the same time in their names: their ids differ."""
    full, incremental = _read([_ENTRY, _with(Name="backup_20261120T031501Z_D_20261119T031501Z")])
    assert isinstance(full, Entry)
    assert isinstance(incremental, Entry)
    assert (full.id, incremental.id) == ("c1:backup_20261120T031501Z", "c1:backup_20261120T031501Z_D")


def test_longest_prefix() -> None:
    """A prefix of 24 characters makes ids of at most 50; a longer one, such as a UUID, is refused at once, with the way out."""
    [entry] = _read([_with(Name="backup_20261120T031501Z_D_20261119T031501Z")], id_prefix="x" * 24)
    assert isinstance(entry, Entry)
    assert len(entry.id) == 50
    for prefix in ("x" * 25, "6f1c2d3e-4b5a-6978-8796-a5b4c3d2e1f0", "", "a b", "кластер"):
        with pytest.raises(InvalidIdPrefix, match="--id-prefix gives a shorter one.*1 to 24"):
            walg.read(io.BytesIO(b"not even looked at"), id_prefix=prefix)


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (b"", "the input is empty"),
        (b"\n", "the input is empty"),
        (b"null", "this is something else"),
        (b'{"Name":"x"}', "this is a JSON object"),
        (b"backupconfigs:\n- backupdir: ''\n", "gpbackup's history in YAML"),
        (b"SQLite format 3\0\x10\0", "this is something else"),
        (b"name                      modified\nbackup_20261120T031501Z 2026\n", "a table for people, made without --json"),
        (b"+---+------\n", "a table for people, made without --json"),
        (b"[3]", "no JSON object"),
        (b'[{"Name":"backup_2026', "ends early, after 0 whole entries"),
        (json.dumps([_ENTRY]).encode()[:-1], "ends early, after 1 whole entries"),
    ],
)
def test_what_is_no_such_listing(listing: bytes, message: str) -> None:
    """What is no such listing is refused with what it is."""
    with pytest.raises(InvalidListing, match=message):
        _read(listing)


@pytest.mark.parametrize("line", [1, 2, 3])
def test_log_lines(line: int) -> None:
    """Lines of WAL-G's log before, in or after the listing are named, with the way to be rid of them."""
    lines = ["[", json.dumps(_ENTRY) + "]"]
    lines.insert(line - 1, "INFO: 2026/11/20 09:00:00.000001 Using storages: [default]")
    with pytest.raises(InvalidListing, match=f"line {line} is a line of WAL-G's log.*2>&1"):
        _read("\n".join(lines).encode())


def test_listing_without_detail() -> None:
    """The list made without --detail has only an object's time, which changes when it is copied: refused."""
    listing = {
        "backup_name": "backup_20261120T031501Z",
        "time": "2026-11-20T02:42:03Z",
        "wal_file_name": "Z" * 24,
        "storage_name": "default",
    }
    with pytest.raises(InvalidListing, match="made without --detail"):
        _read([listing])


def test_listing_of_a_postgresql() -> None:
    """A listing of PostgreSQL backups is distinguished from a listing of Greenplum backups."""
    listing = {"backup_name": "base_0001", "time": "2026-11-20T02:42:03Z", "start_time": "2026-11-20T02:42:03Z", "start_lsn": 1}
    with pytest.raises(InvalidListing, match="of a PostgreSQL, not of a Greenplum"):
        _read([listing])


def test_empty_array() -> None:
    """An empty array is a listing of nothing."""
    assert _read([]) == []
