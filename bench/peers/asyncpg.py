"""*asyncpg*: asyncpg's pool with its defaults, keyset paging, messages built from rows."""

import base64
from datetime import datetime
from typing import Any

import asyncpg
import grpc

from bench.peers.server import run
from service import pb

_COLUMNS = "id, folder_id, created_at, source_cluster_id, started_at, size"
_GET = f"SELECT {_COLUMNS} FROM backups WHERE id = $1"
_FIRST_PAGE = f"SELECT {_COLUMNS} FROM backups WHERE folder_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2"
_NEXT_PAGE = f"""
    SELECT {_COLUMNS} FROM backups WHERE folder_id = $1 AND (created_at, id) < ($3, $4) ORDER BY created_at DESC, id DESC LIMIT $2"""


class AsyncpgBackupService(pb.BackupServiceServicer):
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def Get(self, request: Any, context: Any) -> Any:
        row = await self._pool.fetchrow(_GET, request.backup_id)
        if row is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "The backup does not exist.")
        return _backup(row)

    async def List(self, request: Any, context: Any) -> Any:
        size = request.page_size or 100
        if request.page_token:
            rows = await self._pool.fetch(_NEXT_PAGE, request.folder_id, size + 1, *_open(request.page_token))
        else:
            rows = await self._pool.fetch(_FIRST_PAGE, request.folder_id, size + 1)
        response = pb.ListBackupsResponse(backups=[_backup(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = _seal(rows[size - 1])
        return response


def _backup(row: Any) -> Any:
    backup = pb.Backup(id=row["id"], folder_id=row["folder_id"], source_cluster_id=row["source_cluster_id"], size=row["size"])
    backup.created_at.FromDatetime(row["created_at"])
    backup.started_at.FromDatetime(row["started_at"])
    return backup


def _seal(row: Any) -> str:
    return base64.urlsafe_b64encode(f"{row['created_at'].isoformat()} {row['id']}".encode()).decode()


def _open(token: str) -> tuple[datetime, str]:
    created_at, backup_id = base64.urlsafe_b64decode(token).decode().split(" ")
    return datetime.fromisoformat(created_at), backup_id


async def _build(url: str) -> AsyncpgBackupService:
    return AsyncpgBackupService(await asyncpg.create_pool(url))


if __name__ == "__main__":
    run(_build)
