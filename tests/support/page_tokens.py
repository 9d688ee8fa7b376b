"""The lists that page tokens belong to."""

from service.page_token import TokenScope


def folder_scope(folder_id: str) -> TokenScope:
    """Return the scope of tokens of `BackupService.List`."""
    return TokenScope("/yandex.cloud.mdb.greenplum.v1.BackupService/List", folder_id)


def cluster_scope(cluster_id: str) -> TokenScope:
    """Return the scope of tokens of `ClusterService.ListBackups`."""
    return TokenScope("/yandex.cloud.mdb.greenplum.v1.ClusterService/ListBackups", cluster_id)
