"""Limits are read from the contract's descriptors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import pb
from service.api.validation import validate
from service.errors import InvalidRequest, Violation

_MANY = "Must have 0 to {} characters."


@pytest.mark.parametrize(
    "request_",
    [
        pb.GetBackupRequest(backup_id="x"),
        pb.GetBackupRequest(backup_id="x" * 10_000),
        pb.ListBackupsRequest(folder_id="f"),
        pb.ListBackupsRequest(folder_id="f" * 50, page_size=1000, page_token="t" * 100),
        pb.ListBackupsRequest(folder_id="\U0001f418" * 50, page_size=0),
        pb.ListClusterBackupsRequest(cluster_id="c" * 50, page_size=1000, page_token="t" * 100),
    ],
)
def test_within_the_limits(request_: pb.GetBackupRequest | pb.ListBackupsRequest) -> None:
    """Both ends of each limit are within it; characters are Unicode code points."""
    validate(request_)


@pytest.mark.parametrize(
    ("request_", "violations"),
    [
        (pb.GetBackupRequest(), [("backup_id", "Is required.")]),
        (pb.ListBackupsRequest(), [("folder_id", "Is required.")]),
        (pb.ListBackupsRequest(folder_id="f" * 51), [("folder_id", _MANY.format(50))]),
        (pb.ListBackupsRequest(folder_id="f", page_size=-1), [("page_size", "Must be from 0 to 1000.")]),
        (pb.ListBackupsRequest(folder_id="f", page_size=1001), [("page_size", "Must be from 0 to 1000.")]),
        (pb.ListBackupsRequest(folder_id="f", page_size=2**63 - 1), [("page_size", "Must be from 0 to 1000.")]),
        (pb.ListBackupsRequest(folder_id="f", page_size=-(2**63)), [("page_size", "Must be from 0 to 1000.")]),
        (pb.ListBackupsRequest(folder_id="f", page_token="t" * 101), [("page_token", _MANY.format(100))]),
        (pb.ListClusterBackupsRequest(), [("cluster_id", "Is required.")]),
        (pb.ListClusterBackupsRequest(cluster_id="c", page_size=-1), [("page_size", "Must be from 0 to 1000.")]),
        (pb.ListClusterBackupsRequest(cluster_id="c", page_size=1001), [("page_size", "Must be from 0 to 1000.")]),
        (
            pb.ListBackupsRequest(folder_id="", page_size=-5, page_token="t" * 101),
            [("folder_id", "Is required."), ("page_size", "Must be from 0 to 1000."), ("page_token", _MANY.format(100))],
        ),
    ],
)
def test_every_violation_at_once(request_: pb.GetBackupRequest | pb.ListBackupsRequest, violations: list[tuple[str, str]]) -> None:
    """Every field that breaks a limit is named, in the order of the contract."""
    with pytest.raises(InvalidRequest) as caught:
        validate(request_)
    assert caught.value.violations == [Violation(*violation) for violation in violations]


@given(
    st.text(st.characters(exclude_categories=["Cs"])), st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=["Cs"]))
)
def test_any_request(folder_id: str, page_size: int, page_token: str) -> None:
    """A request passes if and only if it is within the contract's limits."""
    within = {
        "folder_id": 1 <= len(folder_id) <= 50,
        "page_size": 0 <= page_size <= 1000,
        "page_token": len(page_token) <= 100,
    }
    try:
        validate(pb.ListBackupsRequest(folder_id=folder_id, page_size=page_size, page_token=page_token))
        broken = []
    except InvalidRequest as exc:
        broken = [violation.field for violation in exc.violations]
    assert broken == [field for field, is_within in within.items() if not is_within]
