"""`ClusterService`: `ListBackups`. The public API's other methods return UNIMPLEMENTED, because proto/ does not declare them."""

from service import pb
from service.api.auth.authentication import current_caller
from service.api.backup_service import encoded_page
from service.api.client_address import current_client
from service.api.validation import validate
from service.backup import DEFAULT_PAGE_SIZE
from service.page_token import PageTokens, TokenScope
from service.postgres.catalog import Catalog

_LIST_BACKUPS = f"/{pb.CLUSTER_SERVICE}/ListBackups"


class ClusterService(pb.ClusterServiceServicer):
    """Backups of the catalog, by cluster."""

    def __init__(self, *, catalog: Catalog, page_tokens: PageTokens) -> None:
        self._catalog = catalog
        self._page_tokens = page_tokens

    async def ListBackups(self, request: pb.ListClusterBackupsRequest, context: object) -> bytes:  # type: ignore[override]  # encoded
        """Return one page of a cluster's backups, newest first, as an encoded `ListClusterBackupsResponse`.

        The page is empty if the cluster is unknown or the caller may not read its folder. Everything that depends on the request alone is
        checked before the catalog is read, so that an error does not reveal that the cluster exists.
        """
        validate(request)
        scope = TokenScope(_LIST_BACKUPS, request.cluster_id)
        after = self._page_tokens.open(request.page_token, scope)
        size = request.page_size or DEFAULT_PAGE_SIZE
        folders, client = current_caller().folders, current_client()
        page = await self._catalog.cluster_page(request.cluster_id, folders=folders, after=after, size=size, client=client)
        return encoded_page(page, self._page_tokens, scope)
