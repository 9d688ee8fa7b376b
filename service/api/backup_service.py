"""`Get` and `List`. Identity, deadline, decoding, errors and logs are the interceptor's.

Both answer in bytes: the catalog's rows already are protobuf, and encodings that follow each other are one message.
"""

from datetime import UTC

from service import pb
from service.api.authentication import current_caller
from service.api.validation import validate
from service.backup import DEFAULT_PAGE_SIZE, Position
from service.page_token import PageTokens
from service.postgres.catalog import Catalog


class BackupService(pb.BackupServiceServicer):
    """Answers from the catalog."""

    def __init__(self, *, catalog: Catalog, page_tokens: PageTokens) -> None:
        self._catalog = catalog
        self._page_tokens = page_tokens

    async def Get(self, request: pb.GetBackupRequest, context: object) -> bytes:  # type: ignore[override]  # a Backup, encoded
        """One backup."""
        validate(request)
        return _message(await self._catalog.get(request.backup_id, folders=current_caller().folders))

    async def List(self, request: pb.ListBackupsRequest, context: object) -> bytes:  # type: ignore[override]  # encoded
        """One page of a folder's backups, newest first."""
        if request.folder_id:
            current_caller().require_read(request.folder_id)  # first: a stranger is told nothing else
        validate(request)
        after = self._page_tokens.open(request.page_token, folder_id=request.folder_id)
        page = await self._catalog.page(request.folder_id, after=after, size=request.page_size or DEFAULT_PAGE_SIZE)
        parts = page.elements
        if page.has_more:
            token = self._page_tokens.seal(_position(page.elements[-1]), folder_id=request.folder_id)
            parts = [*parts, pb.ListBackupsResponse(next_page_token=token).SerializeToString()]
        return b"".join(parts)


def _message(element: bytes) -> bytes:
    """An element without its tag and its length: a varint, which ends at the first byte below 128."""
    length_end = next(index for index in range(1, len(element)) if element[index] < 0x80)
    return element[length_end + 1 :]


def _position(element: bytes) -> Position:
    backup = pb.Backup.FromString(_message(element))
    return Position(backup.created_at.ToDatetime(UTC), backup.id)
