"""Get and List over a real socket: what they answer when all is well."""

from datetime import UTC

import grpc
import pytest

from service import pb
from service.page_token import DEFAULT_KEY
from tests.support.catalog import AddBackups, Backup, Sql
from tests.support.server import StartServer


def _row(backup: pb.Backup) -> Backup:
    return Backup(
        backup.id,
        backup.folder_id,
        backup.created_at.ToDatetime(UTC),
        backup.source_cluster_id,
        backup.started_at.ToDatetime(UTC),
        backup.size,
    )


@pytest.mark.parametrize("columns", [{}, {"id": "!", "folder_id": "ж" * 50, "source_cluster_id": "\\", "size": 0}, {"size": 2**53 - 1}])
async def test_get(stub: pb.BackupServiceStub, add_backups: AddBackups, columns: dict[str, object]) -> None:
    """Get answers every field of a backup as the catalog has it."""
    await add_backups(3)
    [backup] = await add_backups(1, **columns)
    assert _row(await stub.Get(pb.GetBackupRequest(backup_id=backup.id))) == backup


async def test_list(stub: pb.BackupServiceStub, add_backups: AddBackups) -> None:
    """List answers every field of a folder's backups, of all its clusters and no other folder's, newest first."""
    backups = await add_backups(3) + await add_backups(3, source_cluster_id="c2")
    await add_backups(2, folder_id="f2")

    answer = await stub.List(pb.ListBackupsRequest(folder_id="f1"))

    assert [_row(backup) for backup in answer.backups] == sorted(backups, key=lambda row: (row.created_at, row.id), reverse=True)
    assert answer.next_page_token == ""


async def test_empty_folder(stub: pb.BackupServiceStub, add_backups: AddBackups) -> None:
    """A folder without backups, which may not even exist, is an empty page."""
    await add_backups(1)
    for folder_id in ("f2", "f", "f1\0", "\x01", "\U0001f418" * 50):
        assert await stub.List(pb.ListBackupsRequest(folder_id=folder_id)) == pb.ListBackupsResponse()


@pytest.mark.parametrize(("rows", "page_size", "lengths"), [(250, 100, [100, 100, 50]), (250, 0, [100, 100, 50]), (200, 100, [100, 100]),
                                                           (1001, 1000, [1000, 1]), (3, 1, [1, 1, 1])])  # fmt: skip
async def test_pages(stub: pb.BackupServiceStub, add_backups: AddBackups, rows: int, page_size: int, lengths: list[int]) -> None:
    """Pages are as long as asked for, 100 by default, and the last one says so, however full; nothing is repeated or missed."""
    backups = await add_backups(rows)
    pages = await walk(stub, "f1", [page_size])
    assert [len(page) for page in pages] == lengths
    assert [backup_id for page in pages for backup_id in page] == [backup.id for backup in backups]


async def test_page_size_may_change(stub: pb.BackupServiceStub, add_backups: AddBackups) -> None:
    """Each page may have another size."""
    backups = await add_backups(20)
    pages = await walk(stub, "f1", [1, 7, 3, 0])
    assert [len(page) for page in pages] == [1, 7, 3, 9]
    assert [backup_id for page in pages for backup_id in page] == [backup.id for backup in backups]


async def test_many_completed_at_the_same_moment(stub: pb.BackupServiceStub, add_backups: AddBackups, sql: Sql) -> None:
    """Among backups completed at one moment, ids decide, by their bytes: pages neither repeat nor miss one."""
    [first] = await add_backups(1)
    ids = [f"{prefix}{number}" for number in range(30) for prefix in ("a", "B", "b", "A", "a-", "_", "~")]
    for backup_id in ids:
        await add_backups(1, id=backup_id, created_at=first.created_at)
    pages = await walk(stub, "f1", [7])
    assert [backup_id for page in pages for backup_id in page] == sorted([*ids, first.id], reverse=True)


async def test_walk_outlives_the_row_its_token_names(stub: pb.BackupServiceStub, add_backups: AddBackups, sql: Sql) -> None:
    """A walk goes on where it stopped even if the row that its token names has been deleted since."""
    newest, middle, oldest = await add_backups(3)
    first = await stub.List(pb.ListBackupsRequest(folder_id="f1", page_size=1))

    await sql.execute("DELETE FROM backups WHERE id = $1", newest.id)
    rest = await stub.List(pb.ListBackupsRequest(folder_id="f1", page_token=first.next_page_token))

    assert [backup.id for backup in rest.backups] == [middle.id, oldest.id]


async def test_replicas_and_restarts(start_server: StartServer, add_backups: AddBackups) -> None:
    """A token that one server gave out is good at another, and one of an accepted key too."""
    backups = await add_backups(4)
    key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    async with start_server() as old, start_server(page_token_key=key, page_token_keys_accepted=[DEFAULT_KEY]) as new:
        async with grpc.aio.insecure_channel(str(old.address)) as to_old, grpc.aio.insecure_channel(str(new.address)) as to_new:
            first = await pb.BackupServiceStub(to_old).List(pb.ListBackupsRequest(folder_id="f1", page_size=2))
            rest = await pb.BackupServiceStub(to_new).List(pb.ListBackupsRequest(folder_id="f1", page_token=first.next_page_token))
    assert [backup.id for page in (first, rest) for backup in page.backups] == [backup.id for backup in backups]


async def walk(stub: pb.BackupServiceStub, folder_id: str, sizes: list[int]) -> list[list[str]]:
    """The ids of each page, to the last; page sizes are taken in turn, the last one for all that follow."""
    pages: list[list[str]] = []
    token = ""
    while True:
        size = sizes[min(len(pages), len(sizes) - 1)]
        page = await stub.List(pb.ListBackupsRequest(folder_id=folder_id, page_size=size, page_token=token))
        pages.append([backup.id for backup in page.backups])
        token = page.next_page_token
        if not token:
            return pages
