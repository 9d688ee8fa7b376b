"""The generated messages and stubs of the API, under the names that the contract gives them (see proto/)."""

from service.pb.yandex.cloud import validation_pb2 as validation
from service.pb.yandex.cloud.mdb.greenplum.v1.backup_pb2 import Backup
from service.pb.yandex.cloud.mdb.greenplum.v1.backup_service_pb2 import (
    DESCRIPTOR,
    GetBackupRequest,
    ListBackupsRequest,
    ListBackupsResponse,
)
from service.pb.yandex.cloud.mdb.greenplum.v1.backup_service_pb2_grpc import (
    BackupServiceServicer,
    BackupServiceStub,
    add_BackupServiceServicer_to_server,
)

BACKUP_SERVICE = DESCRIPTOR.services_by_name["BackupService"].full_name

__all__ = [
    "BACKUP_SERVICE",
    "DESCRIPTOR",
    "Backup",
    "BackupServiceServicer",
    "BackupServiceStub",
    "GetBackupRequest",
    "ListBackupsRequest",
    "ListBackupsResponse",
    "add_BackupServiceServicer_to_server",
    "validation",
]
