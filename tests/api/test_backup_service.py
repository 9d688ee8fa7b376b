"""Get and List over a real socket."""

from service import pb
from tests.conftest import AddBackups


async def test_get_returns_the_backup(stub: pb.BackupServiceStub, add_backups: AddBackups) -> None:
    """Get answers every field of a backup as the catalog has it."""
    [backup] = await add_backups(1, size=2**63 - 1)

    answer = await stub.Get(pb.GetBackupRequest(backup_id=backup.id))

    assert answer.id == backup.id
    assert answer.size == backup.size


async def test_list_newest_first(stub: pb.BackupServiceStub, add_backups: AddBackups) -> None:
    """List answers a folder's backups, newest first."""
    backups = await add_backups(3)
    await add_backups(2, folder_id="f2")

    answer = await stub.List(pb.ListBackupsRequest(folder_id="f1"))

    assert [backup.id for backup in answer.backups] == [backup.id for backup in backups]
    assert answer.next_page_token == ""
