"""Calls the service with the official Python client: reads a call from each line of JSON, prints its result as a line of JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import grpc
from backups import backups, cluster_backups, connect, explained, get
from yandex.cloud.iam.v1.iam_token_service_pb2 import CreateIamTokenRequest
from yandex.cloud.iam.v1.iam_token_service_pb2_grpc import IamTokenServiceStub
from yandex.cloud.mdb.greenplum.v1.backup_pb2 import Backup
from yandex.cloud.mdb.greenplum.v1.backup_service_pb2 import DeleteBackupRequest
from yandex.cloud.mdb.greenplum.v1.backup_service_pb2_grpc import BackupServiceStub


def call(address: str, root_certificates: bytes, case: dict[str, Any]) -> list[Backup]:
    sdk = connect(address, case["token"], root_certificates)
    match case:
        case {"call": "get", "backup_id": backup_id}:
            return [get(sdk, backup_id)]
        case {"call": "list", "folder_id": folder_id, "page_size": page_size}:
            return list(backups(sdk, folder_id, page_size))
        case {"call": "list_cluster", "cluster_id": cluster_id, "page_size": page_size}:
            return list(cluster_backups(sdk, cluster_id, page_size))
        case {"call": "delete", "backup_id": backup_id}:
            sdk.client(BackupServiceStub).Delete(DeleteBackupRequest(backup_id=backup_id))
        case {"call": "create token"}:
            sdk.client(IamTokenServiceStub).Create(CreateIamTokenRequest(yandex_passport_oauth_token="x"))
    raise AssertionError(case)


def row(backup: Backup) -> list[Any]:
    times = [time.ToMicroseconds() for time in (backup.created_at, backup.started_at)]
    kinds = [backup.type, backup.method, backup.journal_size]
    return [backup.id, backup.folder_id, times[0], backup.source_cluster_id, times[1], backup.size, *kinds]


def main(address: str, ca_file: str) -> None:
    for line in sys.stdin:
        try:
            answer = {"backups": [row(backup) for backup in call(address, Path(ca_file).read_bytes(), json.loads(line))]}
        except grpc.RpcError as exc:
            code, message, request_id = explained(exc)
            answer = {"code": code.value[0], "message": message, "request_id": request_id}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
