"""`BackupService`: `Get` and `List`. The interceptor handles identity, deadlines, decoding, errors and logs.

The rows of the catalog are encoded already, and so are the responses.
"""

from datetime import UTC

from service import pb
from service.api.auth.authentication import current_caller
from service.api.client_address import current_client
from service.api.validation import validate
from service.backup import DEFAULT_PAGE_SIZE, Page, Position
from service.page_token import PageTokens, TokenScope
from service.postgres.catalog import Catalog

_LIST = f"/{pb.BACKUP_SERVICE}/List"


class BackupService(pb.BackupServiceServicer):
    """Backups of the catalog, by id and by folder."""

    def __init__(self, *, catalog: Catalog, page_tokens: PageTokens) -> None:
        self._catalog = catalog
        self._page_tokens = page_tokens

    async def Get(self, request: pb.GetBackupRequest, context: object) -> bytes:  # type: ignore[override]  # a Backup, encoded
        """Return one backup as an encoded `Backup`."""
        validate(request)
        return encoded_backup(await self._catalog.get(request.backup_id, folders=current_caller().folders))

    async def List(self, request: pb.ListBackupsRequest, context: object) -> bytes:  # type: ignore[override]  # encoded
        """Return one page of a folder's backups, newest first, as an encoded `ListBackupsResponse`."""
        if request.folder_id:
            # Authorization comes before validation: an unauthorized caller learns nothing about the request.
            current_caller().require_read(request.folder_id)
        validate(request)
        scope = TokenScope(_LIST, request.folder_id)
        after = self._page_tokens.open(request.page_token, scope)
        size = request.page_size or DEFAULT_PAGE_SIZE
        page = await self._catalog.page(request.folder_id, after=after, size=size, client=current_client())
        return encoded_page(page, self._page_tokens, scope)


def encoded_page(page: Page, page_tokens: PageTokens, scope: TokenScope) -> bytes:
    """Return a page as an encoded `ListBackupsResponse` or `ListClusterBackupsResponse`. Both have the same field numbers.

    Concatenated encodings are one message in protobuf, so only the last element is parsed, for the token.
    """
    if page.last is None:
        return bytes(page.elements)
    token = page_tokens.seal(_position(page.last), scope)
    return b"".join((page.elements, pb.ListBackupsResponse(next_page_token=token).SerializeToString()))


def encoded_backup(element: bytes) -> bytes:
    """Return an element without its tag and its length, a varint that ends at the first byte below 128."""
    length_end = next(index for index in range(1, len(element)) if element[index] < 0x80)
    return element[length_end + 1 :]


def _position(element: bytes) -> Position:
    backup = pb.Backup.FromString(encoded_backup(element))
    return Position(backup.created_at.ToDatetime(UTC), backup.id)
