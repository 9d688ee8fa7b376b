"""Pages of a list of backups, restricted to a range of completion times.

The API has no filter, and its lists are ordered newest first.
So newer backups are read and dropped, and reading stops at the first older one.
"""

import contextlib
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import NamedTuple

import typer

from service import pb


def instant(text: str) -> datetime:
    """Parse the time of an option.

    Raises:
        BadParameter: the value is not a time, or has no offset from UTC.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise typer.BadParameter("must be a time with its offset, such as 2026-11-20T00:00:00Z")
    return time


class TimeRange(NamedTuple):
    """A range of completion times: from `since`, which is included, to `until`, which is not. None means no limit."""

    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_limited(self) -> bool:
        return self.since is not None or self.until is not None

    def is_too_new(self, backup: pb.Backup) -> bool:
        return self.until is not None and backup.created_at.ToDatetime(UTC) >= self.until

    def is_too_old(self, backup: pb.Backup) -> bool:
        return self.since is not None and backup.created_at.ToDatetime(UTC) < self.since


async def within(pages: AsyncGenerator[pb.ListBackupsResponse], times: TimeRange) -> AsyncGenerator[pb.ListBackupsResponse]:
    """Yield the pages without the backups outside the range, to the first page that has an older backup."""
    async with contextlib.aclosing(pages):
        async for page in pages:
            kept = [backup for backup in page.backups if not (times.is_too_new(backup) or times.is_too_old(backup))]
            is_last = any(times.is_too_old(backup) for backup in page.backups)
            yield pb.ListBackupsResponse(backups=kept, next_page_token="" if is_last else page.next_page_token)
            if is_last:
                return
