from collections.abc import Iterator

import grpc
import yandexcloud
from yandex.cloud.mdb.greenplum.v1.backup_pb2 import Backup
from yandex.cloud.mdb.greenplum.v1.backup_service_pb2 import GetBackupRequest, ListBackupsRequest
from yandex.cloud.mdb.greenplum.v1.backup_service_pb2_grpc import BackupServiceStub


def connect(address: str, token: str, root_certificates: bytes | None = None) -> yandexcloud.SDK:
    return yandexcloud.SDK(endpoint=address, iam_token=token, root_certificates=root_certificates)


def get(sdk: yandexcloud.SDK, backup_id: str) -> Backup:
    return sdk.client(BackupServiceStub).Get(GetBackupRequest(backup_id=backup_id))


def backups(sdk: yandexcloud.SDK, folder_id: str, page_size: int = 0) -> Iterator[Backup]:
    service = sdk.client(BackupServiceStub)
    request = ListBackupsRequest(folder_id=folder_id, page_size=page_size)
    while True:
        page = service.List(request)
        yield from page.backups
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def explained(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, str]:
    """The code, the message and the request id, to quote when asking about it."""
    return error.code(), error.details(), dict(error.trailing_metadata()).get("x-request-id", "")
