"""Entries of WAL-G's listing, with cases that its users reported."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.entry import ENDS_BEFORE_IT_STARTS, EXCLUDED, TOO_EARLY, Entry, Listed, Selection, Skipped, Unusable
from service.errors import InvalidIdPrefix, InvalidListing
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


def _read(listing: bytes | list[dict[str, Any]], *, id_prefix: str = "c1", **selection: Any) -> list[Listed]:
    data = listing if isinstance(listing, bytes) else json.dumps(listing).encode() + b"\n"
    return list(walg.read(io.BytesIO(data), id_prefix=id_prefix, selection=Selection(**selection)))


def _only(**changes: Any) -> Entry:
    [entry] = _read([_with(**changes)])
    assert isinstance(entry, Entry)
    return entry


def _error(*, id_prefix: str = "c1", **changes: Any) -> Unusable:
    """Return the error of an unusable entry that follows a usable one."""
    usable, unusable = _read([_ENTRY, _with(**changes)], id_prefix=id_prefix)
    assert isinstance(usable, Entry)
    assert isinstance(unusable, Unusable)
    return unusable


def test_sample() -> None:
    """The sample has four backups: a full one, two increments with their parents, and one with the id of a control plane."""
    with Path(ROOT, "samples/walg-backup-list.json").open("rb") as stream:
        entries = list(walg.read(stream, id_prefix="c1"))

    facts = [(each.id, each.size, each.method, each.needs, each.permanent) for each in entries if isinstance(each, Entry)]
    assert facts == [
        ("c1:backup_20261120T031501Z", 912177820331, "base", (), False),
        ("c1:backup_20261121T031502Z_D", 25325704421, "incremental", ("backup_20261120T031501Z",), False),
        ("c1:backup_20261122T031502Z_D", 22116874035, "incremental", ("backup_20261121T031502Z_D_20261120T031501Z",), False),
        ("c9q3vd0k8m1nt5rj2hfe", 913800120559, "base", (), True),
    ]
    assert {(each.contents, each.database) for each in entries if isinstance(each, Entry)} == {("everything", "")}


def test_pretty_and_compact_are_the_same() -> None:
    """White space between the values has no effect."""
    assert _read(json.dumps([_ENTRY], indent=4).encode()) == _read(json.dumps([_ENTRY], separators=(",", ":")).encode())


def test_times_come_from_the_fields() -> None:
    """The start is taken from start_time: the name contains local time, 03:15, although it ends in Z."""
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
    """A time may have up to nine digits of fraction and any offset, and is truncated to microseconds."""
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
    """A value that is not a time, or not one that the API can represent, makes the entry unusable; the error names entry and field."""
    changes: dict[str, Any] = {field: value}
    error = _error(**changes)
    assert error.field == field
    assert error.entry == "entry 2 ('backup_20261120T031501Z')"


def test_first_and_last_time() -> None:
    """The first microsecond of 1970 and the last but one of 9999 are accepted."""
    entry = _only(start_time="1970-01-01T00:00:00Z", finish_time="9999-12-31T23:59:59.999998Z")
    assert (entry.started_at.year, entry.created_at.year) == (1970, 9999)


def test_ends_before_it_starts() -> None:
    """A backup that was completed before it started gets a duration of 0, with a warning; its completion is kept."""
    entry = _only(start_time="2026-11-20T02:41:58.826200Z")
    assert entry.created_at == entry.started_at == datetime(2026, 11, 20, 2, 41, 58, 826199, tzinfo=UTC)
    assert entry.warnings == (ENDS_BEFORE_IT_STARTS,)
    assert _only(start_time=_ENTRY["finish_time"]).warnings == ()


def test_backup_from_before_times_were_recorded() -> None:
    """An entry without a finish time is skipped; it gets no time from another source."""
    old = _with(Name="backup_20210801T031501Z", start_time="0001-01-01T00:00:00Z", finish_time="0001-01-01T00:00:00Z", compressed_size=0)
    skipped, entry = _read([old, _ENTRY])
    assert skipped == Skipped("backup_20210801T031501Z", "finish time unknown: made by a WAL-G older than September 2021")
    assert isinstance(entry, Entry)


def test_old_and_new_fields_together() -> None:
    """Unknown keys, missing optional keys and numbers over 64 bits have no effect if no value depends on them."""
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
    """User data without an id of a control plane gives an id of prefix and name."""
    assert _only(user_data=user_data).id == "c1:backup_20261120T031501Z"


@pytest.mark.parametrize("backup_id", ["x", "x" * 50, "c9q3vd0k8m1nt5rj2hfe", "!~"])
def test_user_data_with_an_id(backup_id: str) -> None:
    """A control plane's id is used unchanged."""
    assert _only(user_data={"backup_id": backup_id}).id == backup_id


@pytest.mark.parametrize("backup_id", ["x" * 51, "a\0b", "a b", "\u0436", "a\n", "\ud800"])
def test_user_data_with_a_bad_id(backup_id: str) -> None:
    """A control plane's id that the API cannot represent makes the entry unusable, because it must not be altered."""
    error = _error(user_data={"backup_id": backup_id})
    assert error.field == "user_data.backup_id"
    assert "\n" not in error.message


@pytest.mark.parametrize("backup_id", ["c1:x", "c1:backup_20261120T031501Z", "c1:"])
def test_given_ids_of_this_import(backup_id: str) -> None:
    """A control plane's id may begin with the prefix of this import."""
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
    error = _error(id_prefix=prefix, user_data={"backup_id": backup_id})
    assert "only an import with the same prefix may use such an id" in error.message
    assert error.field == "user_data.backup_id"


@pytest.mark.parametrize("size", [0, 1, 2**53 - 1])
def test_sizes(size: int) -> None:
    """Zero and the largest size that every client can decode are accepted."""
    assert _only(compressed_size=size).size == size


@pytest.mark.parametrize("size", [_ABSENT, -1, 1.5, "5", True, 2**53, None, [], 5.0, 10**400])
def test_bad_sizes(size: object) -> None:
    """A value that is not an integer from 0 to 2^53 - 1 makes the entry unusable; a boolean is not an integer."""
    error = _error(compressed_size=size)
    assert error.field == "compressed_size"
    assert len(error.message) < 300


@pytest.mark.parametrize("parent", [None, "", 5, "x" * 999, "base_000000010000000000000002", ["backup_20261119T031501Z"], "a\0"])
def test_bad_parents(parent: object) -> None:
    """A parent that is not the name of a backup makes the entry unusable."""
    assert _error(increment_from=parent).field == "increment_from"


def test_increment_without_a_parent() -> None:
    """A backup that is named like an increment is one, even without a recorded parent."""
    entry = _only(Name="backup_20261120T031501Z_D_20261119T031501Z")
    assert (entry.method, entry.needs) == ("incremental", ())


@pytest.mark.parametrize(("value", "permanent"), [(True, True), (False, False), (None, None), ("yes", None), (_ABSENT, None)])
def test_permanent(value: object, permanent: object) -> None:
    """`is_permanent` is stored if it is a boolean, otherwise it is unknown."""
    assert _only(is_permanent=value).permanent is permanent


def test_excluded() -> None:
    """An entry that --exclude names is skipped, even if it is unusable. Other entries are not."""
    bad = _with(Name="backup_20261119T031501Z", user_data={"backup_id": "a b"})
    skipped, entry = _read([bad, _ENTRY], exclude=frozenset({"backup_20261119T031501Z"}))
    assert skipped == Skipped("backup_20261119T031501Z", EXCLUDED)
    assert isinstance(entry, Entry)


def test_excluded_entry_with_a_bad_name() -> None:
    """An entry whose name is not one of WAL-G's is unusable, and can be excluded by that name."""
    bad = _with(Name="backup of Monday")
    assert isinstance(_read([bad])[0], Unusable)
    assert _read([bad], exclude=frozenset({"backup of Monday"})) == [Skipped(None, EXCLUDED)]


@pytest.mark.parametrize("changes", [{}, {"compressed_size": -1}, {"start_time": "soon"}, {"user_data": {"backup_id": "a b"}}])
def test_too_early(changes: dict[str, Any]) -> None:
    """An entry that was completed before --since is skipped, even if its other values are bad."""
    since = datetime(2026, 11, 20, 2, 41, 58, 826200, tzinfo=UTC)
    assert _read([_with(**changes)], since=since) == [Skipped("backup_20261120T031501Z", TOO_EARLY)]
    assert isinstance(_read([_ENTRY], since=since.replace(microsecond=826199))[0], Entry)


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
    """An entry without the name of a backup of Greenplum is unusable, and its error is one printable line."""
    error = _error(Name=name)
    assert error.field == "Name"
    assert error.message.isprintable()
    assert len(error.message) < 400


def test_full_and_incremental_can_share_a_time() -> None:
    """A full and an incremental backup with the same time in their names have different ids."""
    full, incremental = _read([_ENTRY, _with(Name="backup_20261120T031501Z_D_20261119T031501Z")])
    assert isinstance(full, Entry)
    assert isinstance(incremental, Entry)
    assert (full.id, incremental.id) == ("c1:backup_20261120T031501Z", "c1:backup_20261120T031501Z_D")


def test_longest_prefix() -> None:
    """A prefix of 24 characters makes ids of at most 50; a longer one, such as a UUID, is rejected before the input is read."""
    [entry] = _read([_with(Name="backup_20261120T031501Z_D_20261119T031501Z")], id_prefix="x" * 24)
    assert isinstance(entry, Entry)
    assert len(entry.id) == 50
    for prefix in ("x" * 25, "6f1c2d3e-4b5a-6978-8796-a5b4c3d2e1f0", "", "a b", "кластер"):
        with pytest.raises(InvalidIdPrefix, match="1 to 24 printable ASCII characters.* to --id-prefix"):
            walg.read(io.BytesIO(b"not read"), id_prefix=prefix)


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (b"", "the input is empty"),
        (b"\n", "the input is empty"),
        (b"null", "the input is something else"),
        (b'{"Name":"x"}', "the input is a JSON object"),
        (b"backupconfigs:\n- backupdir: ''\n", "gpbackup's history in YAML"),
        (b"SQLite format 3\0\x10\0", "the input is something else"),
        (b"name                      modified\nbackup_20261120T031501Z 2026\n", "a text table, made without --json"),
        (b"+---+------\n", "a text table, made without --json"),
        (b"[3]", "not a JSON object"),
        (b'[{"Name":"backup_2026', "ends early, after 0 whole entries"),
        (json.dumps([_ENTRY]).encode()[:-1], "ends early, after 1 whole entries"),
    ],
)
def test_other_inputs(listing: bytes, message: str) -> None:
    """An input that is not such a listing is rejected with a description of it."""
    with pytest.raises(InvalidListing, match=message):
        _read(listing)


@pytest.mark.parametrize("line", [1, 2, 3])
def test_log_lines(line: int) -> None:
    """A line of WAL-G's log before, in or after the listing is named in the error, with the way to avoid it."""
    lines = ["[", json.dumps(_ENTRY) + "]"]
    lines.insert(line - 1, "INFO: 2026/11/20 09:00:00.000001 Using storages: [default]")
    with pytest.raises(InvalidListing, match=f"line {line} is a line of WAL-G's log.*2>&1"):
        _read("\n".join(lines).encode())


def test_listing_without_detail() -> None:
    """A list made without --detail is rejected: its times are those of storage objects."""
    listing = {
        "backup_name": "backup_20261120T031501Z",
        "time": "2026-11-20T02:42:03Z",
        "wal_file_name": "Z" * 24,
        "storage_name": "default",
    }
    with pytest.raises(InvalidListing, match="made without --detail"):
        _read([listing])


def test_listing_of_a_postgresql() -> None:
    """A listing of PostgreSQL is rejected, and the error names PostgreSQL."""
    listing = {"backup_name": "base_0001", "time": "2026-11-20T02:42:03Z", "start_time": "2026-11-20T02:42:03Z", "start_lsn": 1}
    with pytest.raises(InvalidListing, match="of PostgreSQL, not of Greenplum"):
        _read([listing])


def test_empty_array() -> None:
    """An empty array is a listing without entries."""
    assert _read([]) == []
