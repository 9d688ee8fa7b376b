from collections.abc import Callable, Iterator
from typing import Any

import grpc
import yandexcloud
from yandex.cloud.mdb.greenplum.v1.backup_pb2 import Backup
from yandex.cloud.mdb.greenplum.v1.backup_service_pb2 import GetBackupRequest, ListBackupsRequest
from yandex.cloud.mdb.greenplum.v1.backup_service_pb2_grpc import BackupServiceStub
from yandex.cloud.mdb.greenplum.v1.cluster_service_pb2 import ListClusterBackupsRequest
from yandex.cloud.mdb.greenplum.v1.cluster_service_pb2_grpc import ClusterServiceStub


def connect(address: str, token: str, root_certificates: bytes | None = None) -> yandexcloud.SDK:
    return yandexcloud.SDK(endpoint=address, iam_token=token, root_certificates=root_certificates)


def get(sdk: yandexcloud.SDK, backup_id: str) -> Backup:
    return sdk.client(BackupServiceStub).Get(GetBackupRequest(backup_id=backup_id))


def backups(sdk: yandexcloud.SDK, folder_id: str, page_size: int = 0) -> Iterator[Backup]:
    return pages(sdk.client(BackupServiceStub).List, ListBackupsRequest(folder_id=folder_id, page_size=page_size))


def cluster_backups(sdk: yandexcloud.SDK, cluster_id: str, page_size: int = 0) -> Iterator[Backup]:
    return pages(sdk.client(ClusterServiceStub).ListBackups, ListClusterBackupsRequest(cluster_id=cluster_id, page_size=page_size))


def pages(method: Callable[[Any], Any], request: ListBackupsRequest | ListClusterBackupsRequest) -> Iterator[Backup]:
    while True:
        page = method(request)
        yield from page.backups
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def explained(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, str]:
    """Return the code, the message, and the request id, which the operators of the service ask for."""
    return error.code(), error.details(), dict(error.trailing_metadata()).get("x-request-id", "")
