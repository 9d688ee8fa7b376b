"""*sqlalchemy*: SQLAlchemy's ORM, LIMIT and OFFSET, messages built from objects, asyncio's default event loop."""

import asyncio
from datetime import datetime
from typing import Any

import asyncpg
import grpc
from sqlalchemy import BigInteger, DateTime, String, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bench.peers.server import run
from service import pb


class _Base(DeclarativeBase):
    pass


class Backup(_Base):
    __tablename__ = "backups"

    id: Mapped[str] = mapped_column(String, primary_key=True)
    folder_id: Mapped[str] = mapped_column(String)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    source_cluster_id: Mapped[str] = mapped_column(String)
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    size: Mapped[int] = mapped_column(BigInteger)

    def to_message(self) -> Any:
        message = pb.Backup(id=self.id, folder_id=self.folder_id, source_cluster_id=self.source_cluster_id, size=self.size)
        message.created_at.FromDatetime(self.created_at)
        message.started_at.FromDatetime(self.started_at)
        return message


class SqlalchemyBackupService(pb.BackupServiceServicer):
    def __init__(self, url: str) -> None:
        engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url))
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def Get(self, request: Any, context: Any) -> Any:
        async with self._sessions() as session:
            backup = await session.get(Backup, request.backup_id)
        if backup is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "The backup does not exist.")
        return backup.to_message()

    async def List(self, request: Any, context: Any) -> Any:
        size, offset = request.page_size or 100, int(request.page_token or 0)
        query = select(Backup).where(Backup.folder_id == request.folder_id).order_by(Backup.created_at.desc(), Backup.id.desc())
        async with self._sessions() as session:
            backups = (await session.scalars(query.limit(size + 1).offset(offset))).all()
        token = str(offset + size) if len(backups) > size else ""
        return pb.ListBackupsResponse(backups=[backup.to_message() for backup in backups[:size]], next_page_token=token)


async def _build(url: str) -> SqlalchemyBackupService:
    return SqlalchemyBackupService(url)


if __name__ == "__main__":
    run(_build, loop=asyncio)
