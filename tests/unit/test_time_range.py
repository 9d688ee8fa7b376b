"""Pages of a list that are restricted to a range of completion times."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import pytest
import typer
from google.protobuf.timestamp_pb2 import Timestamp

from service import pb
from service.cli.client.time_range import TimeRange, instant, within

_START = datetime(2026, 11, 20, tzinfo=UTC)


def _hours(*hours: float) -> list[pb.Backup]:
    created = []
    for each in hours:
        time = Timestamp()
        time.FromDatetime(_START + timedelta(hours=each))
        created.append(pb.Backup(id=f"b{each}", created_at=time))
    return created


def _time(hours: float | None) -> datetime | None:
    return None if hours is None else _START + timedelta(hours=hours)


@pytest.mark.parametrize(
    ("since", "until", "listed", "pages_read"),
    [
        (None, None, [9, 8, 7, 6, 5, 4, 3, 2, 1], 3),
        (5, None, [9, 8, 7, 6, 5], 2),
        (4, None, [9, 8, 7, 6, 5, 4], 3),
        (None, 5, [4, 3, 2, 1], 3),
        (5, 8, [7, 6, 5], 2),
        (5.5, 5.6, [], 2),
        (10, None, [], 1),
        (None, 1, [], 3),
    ],
)
async def test_range(since: float | None, until: float | None, listed: list[int], pages_read: int) -> None:
    """The backups of the range are listed, `since` included and `until` excluded, and no page is read after the first older backup."""
    read = 0

    async def pages() -> AsyncGenerator[pb.ListBackupsResponse]:
        nonlocal read
        for hours, token in (([9, 8, 7], "t1"), ([6, 5, 4], "t2"), ([3, 2, 1], "")):
            read += 1
            yield pb.ListBackupsResponse(backups=_hours(*hours), next_page_token=token)

    found = [page async for page in within(pages(), TimeRange(_time(since), _time(until)))]

    assert [backup.id for page in found for backup in page.backups] == [f"b{hour}" for hour in listed]
    assert found[-1].next_page_token == ""
    assert read == pages_read


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-20", "2026-11-20T00:00:00", "2026-11-31T00:00:00Z"])
def test_times_without_offset(text: str) -> None:
    """A text that is not a time with its offset from UTC is rejected, with an example."""
    with pytest.raises(typer.BadParameter, match="2026-11-20T00:00:00Z"):
        instant(text)


def test_times_with_offset() -> None:
    """A time may have any offset from UTC."""
    assert instant("2026-11-20T03:00:00+03:00") == instant("2026-11-20T00:00:00Z") == _START
