"""*constant*: grpc.aio as it ships, with constant responses of the same size. This is the cost of grpc.aio itself."""

from typing import Any

from bench.peers.server import run
from service import pb

_BACKUP = pb.Backup(
    id="c9q00000000000000000:backup_20261120T024158Z",
    folder_id="b1g00000000000000000",
    source_cluster_id="c9q00000000000000000",
    size=2**34,
)
_BACKUP.created_at.FromJsonString("2026-11-20T02:41:58.826199Z")
_BACKUP.started_at.FromJsonString("2026-11-20T01:41:58.826199Z")
_RESPONSE = _BACKUP.SerializeToString()
_PAGES = {size: pb.ListBackupsResponse(backups=[_BACKUP] * size).SerializeToString() for size in (100, 1000)}


class ConstantBackupService:
    """Handlers that receive and return bytes."""

    async def Get(self, request: bytes, context: Any) -> bytes:
        return _RESPONSE

    async def List(self, request: bytes, context: Any) -> bytes:
        return _PAGES[pb.ListBackupsRequest.FromString(request).page_size]


async def _build(url: str) -> ConstantBackupService:
    return ConstantBackupService()


if __name__ == "__main__":
    run(_build, raw=True)
