"""Generated messages and stubs of the API, under their names in proto/."""

from service.pb.yandex.cloud import validation_pb2 as validation
from service.pb.yandex.cloud.endpoint.api_endpoint_pb2 import ApiEndpoint
from service.pb.yandex.cloud.endpoint.api_endpoint_service_pb2 import DESCRIPTOR as _ENDPOINT_DESCRIPTOR
from service.pb.yandex.cloud.endpoint.api_endpoint_service_pb2 import (
    GetApiEndpointRequest,
    ListApiEndpointsRequest,
    ListApiEndpointsResponse,
)
from service.pb.yandex.cloud.endpoint.api_endpoint_service_pb2_grpc import (
    ApiEndpointServiceServicer,
    ApiEndpointServiceStub,
    add_ApiEndpointServiceServicer_to_server,
)
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
from service.pb.yandex.cloud.mdb.greenplum.v1.cluster_service_pb2 import DESCRIPTOR as CLUSTER_DESCRIPTOR
from service.pb.yandex.cloud.mdb.greenplum.v1.cluster_service_pb2 import (
    ListClusterBackupsRequest,
    ListClusterBackupsResponse,
)
from service.pb.yandex.cloud.mdb.greenplum.v1.cluster_service_pb2_grpc import (
    ClusterServiceServicer,
    ClusterServiceStub,
    add_ClusterServiceServicer_to_server,
)

API_ENDPOINT_SERVICE = _ENDPOINT_DESCRIPTOR.services_by_name["ApiEndpointService"].full_name
BACKUP_SERVICE = DESCRIPTOR.services_by_name["BackupService"].full_name
CLUSTER_SERVICE = CLUSTER_DESCRIPTOR.services_by_name["ClusterService"].full_name

__all__ = [
    "API_ENDPOINT_SERVICE",
    "BACKUP_SERVICE",
    "CLUSTER_DESCRIPTOR",
    "CLUSTER_SERVICE",
    "DESCRIPTOR",
    "ApiEndpoint",
    "ApiEndpointServiceServicer",
    "ApiEndpointServiceStub",
    "Backup",
    "BackupServiceServicer",
    "BackupServiceStub",
    "ClusterServiceServicer",
    "ClusterServiceStub",
    "GetApiEndpointRequest",
    "GetBackupRequest",
    "ListApiEndpointsRequest",
    "ListApiEndpointsResponse",
    "ListBackupsRequest",
    "ListBackupsResponse",
    "ListClusterBackupsRequest",
    "ListClusterBackupsResponse",
    "add_ApiEndpointServiceServicer_to_server",
    "add_BackupServiceServicer_to_server",
    "add_ClusterServiceServicer_to_server",
    "validation",
]
