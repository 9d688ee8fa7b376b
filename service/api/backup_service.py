"""`BackupService`: `Get` and `List`. The interceptor handles identity, deadlines, decoding, errors and logs."""

from service import pb
from service.api.authentication import current_caller
from service.api.backup_page import encoded_backup, encoded_page
from service.api.client_address import current_client
from service.api.validation import validate
from service.backup import DEFAULT_PAGE_SIZE
from service.page_token import PageTokens, TokenScope
from service.postgres.catalog import Catalog

_LIST = f"/{pb.BACKUP_SERVICE}/List"


class BackupService(pb.BackupServiceServicer):
    """Backups of the catalog, by id and by folder. Responses are encoded already."""

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
