"""Walks through all pages of a list of backups."""

from collections.abc import Awaitable, Callable, Sequence

from service import pb

ListPage = Callable[[int, str], Awaitable[pb.ListBackupsResponse | pb.ListClusterBackupsResponse]]
"""Requests a page, given its size and its token."""


def folder_pages(stub: pb.BackupServiceStub, folder_id: str) -> ListPage:
    """Return the pages of a folder."""
    return lambda size, token: stub.List(pb.ListBackupsRequest(folder_id=folder_id, page_size=size, page_token=token))


def cluster_pages(stub: pb.ClusterServiceStub, cluster_id: str) -> ListPage:
    """Return the pages of a cluster."""
    return lambda size, token: stub.ListBackups(pb.ListClusterBackupsRequest(cluster_id=cluster_id, page_size=size, page_token=token))


async def walk(list_page: ListPage, sizes: Sequence[int]) -> list[list[str]]:
    """Return the ids of each page, to the last. Pages take the sizes in turn, and all further pages the last size."""
    pages: list[list[str]] = []
    token = ""
    while True:
        page = await list_page(sizes[min(len(pages), len(sizes) - 1)], token)
        pages.append([backup.id for backup in page.backups])
        token = page.next_page_token
        if not token:
            return pages
