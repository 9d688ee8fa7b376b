"""*no interceptor*: the handlers of this service without its interceptor. The difference is the interceptor's cost."""

import contextlib
from datetime import timedelta
from typing import Any

from bench.peers.server import run
from service import pb
from service.api.authentication import ANYBODY, set_current_caller
from service.api.backup_service import BackupService
from service.page_token import PageTokens
from service.postgres.catalog import Catalog
from service.postgres.database import Limits, open_database

_TEN = timedelta(seconds=10)


class RawBackupService:
    """Handlers that receive and return bytes, as the interceptor does."""

    def __init__(self, service: BackupService, opened: contextlib.AsyncExitStack) -> None:
        self._service, self._opened = service, opened

    async def Get(self, request: bytes, context: Any) -> bytes:
        set_current_caller(ANYBODY)
        return await self._service.Get(pb.GetBackupRequest.FromString(request), context)

    async def List(self, request: bytes, context: Any) -> bytes:
        set_current_caller(ANYBODY)
        return await self._service.List(pb.ListBackupsRequest.FromString(request), context)


async def _build(url: str) -> RawBackupService:
    limits = Limits(pool_size=10, connect=_TEN, acquire=_TEN, statement=_TEN)
    opened = contextlib.AsyncExitStack()
    database = await opened.enter_async_context(open_database(url, limits))
    return RawBackupService(BackupService(catalog=Catalog(database), page_tokens=PageTokens()), opened)


if __name__ == "__main__":
    run(_build, raw=True)
