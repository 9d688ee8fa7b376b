"""Get and List over a socket: responses to valid requests."""

import grpc
import pytest

from service import pb
from service.page_token import DEFAULT_KEY
from tests.support.catalog import AddBackups, Sql, row
from tests.support.paging import folder_pages, walk
from tests.support.server import StartServer


@pytest.mark.parametrize("columns", [{}, {"id": "!", "folder_id": "ж" * 50, "source_cluster_id": "\\", "size": 0}, {"size": 2**53 - 1}])
async def test_get(stub: pb.BackupServiceStub, add_backups: AddBackups, columns: dict[str, object]) -> None:
    """Get returns every field of a backup as the catalog has it."""
    await add_backups(3)
    [backup] = await add_backups(1, **columns)
    assert row(await stub.Get(pb.GetBackupRequest(backup_id=backup.id))) == backup


async def test_list(stub: pb.BackupServiceStub, add_backups: AddBackups) -> None:
    """List returns every field of all backups of a folder and of no other folder, newest first."""
    backups = await add_backups(3) + await add_backups(3, source_cluster_id="c2")
    await add_backups(2, folder_id="f2")

    response = await stub.List(pb.ListBackupsRequest(folder_id="f1"))

    assert [row(backup) for backup in response.backups] == sorted(backups, key=lambda each: (each.created_at, each.id), reverse=True)
    assert response.next_page_token == ""


async def test_empty_folder(stub: pb.BackupServiceStub, add_backups: AddBackups) -> None:
    """A folder that has no backups, or does not exist, gives an empty page."""
    await add_backups(1)
    for folder_id in ("f2", "f", "f1\0", "\x01", "\U0001f418" * 50):
        assert await stub.List(pb.ListBackupsRequest(folder_id=folder_id)) == pb.ListBackupsResponse()


@pytest.mark.parametrize(("rows", "page_size", "lengths"), [(250, 100, [100, 100, 50]), (250, 0, [100, 100, 50]), (200, 100, [100, 100]),
                                                           (1001, 1000, [1000, 1]), (3, 1, [1, 1, 1])])  # fmt: skip
async def test_pages(stub: pb.BackupServiceStub, add_backups: AddBackups, rows: int, page_size: int, lengths: list[int]) -> None:
    """Pages have the requested size, 100 by default, only the last page has no token, and no backup is repeated or missing."""
    backups = await add_backups(rows)
    pages = await walk(folder_pages(stub, "f1"), [page_size])
    assert [len(page) for page in pages] == lengths
    assert [backup_id for page in pages for backup_id in page] == [backup.id for backup in backups]


async def test_page_size_may_change(stub: pb.BackupServiceStub, add_backups: AddBackups) -> None:
    """Each page of a walk may have another size."""
    backups = await add_backups(20)
    pages = await walk(folder_pages(stub, "f1"), [1, 7, 3, 0])
    assert [len(page) for page in pages] == [1, 7, 3, 9]
    assert [backup_id for page in pages for backup_id in page] == [backup.id for backup in backups]


async def test_backups_completed_at_the_same_time(stub: pb.BackupServiceStub, add_backups: AddBackups) -> None:
    """Backups that were completed at the same time are ordered by the bytes of their ids, and pages neither repeat nor miss one."""
    [first] = await add_backups(1)
    ids = [f"{prefix}{number}" for number in range(30) for prefix in ("a", "B", "b", "A", "a-", "_", "~")]
    for backup_id in ids:
        await add_backups(1, id=backup_id, created_at=first.created_at)
    pages = await walk(folder_pages(stub, "f1"), [7])
    assert [backup_id for page in pages for backup_id in page] == sorted([*ids, first.id], reverse=True)


async def test_next_page_after_deleting_the_token_row(stub: pb.BackupServiceStub, add_backups: AddBackups, sql: Sql) -> None:
    """A page token stays valid after the backup that it points to is deleted."""
    newest, middle, oldest = await add_backups(3)
    first = await stub.List(pb.ListBackupsRequest(folder_id="f1", page_size=1))

    await sql.execute("DELETE FROM backups WHERE id = $1", newest.id)
    rest = await stub.List(pb.ListBackupsRequest(folder_id="f1", page_token=first.next_page_token))

    assert [backup.id for backup in rest.backups] == [middle.id, oldest.id]


async def test_tokens_of_other_replicas(start_server: StartServer, add_backups: AddBackups) -> None:
    """A replica accepts the tokens of another replica, even if their key is an accepted one and not its own."""
    backups = await add_backups(4)
    key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    async with start_server() as old, start_server(page_token_key=key, page_token_keys_accepted=[DEFAULT_KEY]) as new:
        async with grpc.aio.insecure_channel(str(old.address)) as to_old, grpc.aio.insecure_channel(str(new.address)) as to_new:
            first = await pb.BackupServiceStub(to_old).List(pb.ListBackupsRequest(folder_id="f1", page_size=2))
            rest = await pb.BackupServiceStub(to_new).List(pb.ListBackupsRequest(folder_id="f1", page_token=first.next_page_token))
    assert [backup.id for page in (first, rest) for backup in page.backups] == [backup.id for backup in backups]
