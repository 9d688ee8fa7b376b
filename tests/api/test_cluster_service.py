"""ClusterService.ListBackups over a socket."""

from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from service import pb
from service.page_token import PageTokens
from tests.support.catalog import AddBackups, Sql, row
from tests.support.failures import failure
from tests.support.page_tokens import cluster_scope, folder_scope
from tests.support.paging import cluster_pages, folder_pages, walk
from tests.support.server import StartGuardedChannel
from tests.support.tokens import Issuer

_EMPTY = pb.ListClusterBackupsResponse()


@pytest.fixture(name="clusters")
def _clusters(channel: grpc.aio.Channel) -> pb.ClusterServiceStub:
    return pb.ClusterServiceStub(channel)


async def test_list(clusters: pb.ClusterServiceStub, add_backups: AddBackups) -> None:
    """ListBackups returns every field of all backups of a cluster and of no other cluster, newest first."""
    backups = await add_backups(3, source_cluster_id="c2")
    await add_backups(3)

    response = await clusters.ListBackups(pb.ListClusterBackupsRequest(cluster_id="c2"))

    assert [row(backup) for backup in response.backups] == backups
    assert response.next_page_token == ""


@pytest.mark.parametrize("cluster_id", ["c", "c11", "C1", "f1", "c1\0", "\x01", "\U0001f418" * 50])
async def test_unknown_cluster(clusters: pb.ClusterServiceStub, add_backups: AddBackups, cluster_id: str) -> None:
    """An unknown cluster gives an empty page."""
    await add_backups(1)
    assert await clusters.ListBackups(pb.ListClusterBackupsRequest(cluster_id=cluster_id)) == _EMPTY


@pytest.mark.parametrize(("rows", "page_size", "lengths"), [(250, 100, [100, 100, 50]), (250, 0, [100, 100, 50]), (200, 100, [100, 100]),
                                                           (1001, 1000, [1000, 1]), (3, 1, [1, 1, 1])])  # fmt: skip
async def test_pages(clusters: pb.ClusterServiceStub, add_backups: AddBackups, rows: int, page_size: int, lengths: list[int]) -> None:
    """Pages have the requested size, 100 by default, only the last page has no token, and no backup is repeated or missing."""
    backups = await add_backups(rows)
    pages = await walk(cluster_pages(clusters, "c1"), [page_size])
    assert [len(page) for page in pages] == lengths
    assert [backup_id for page in pages for backup_id in page] == [backup.id for backup in backups]


async def test_next_page_after_deleting_the_token_row(clusters: pb.ClusterServiceStub, add_backups: AddBackups, sql: Sql) -> None:
    """A page token stays valid after the backup that it points to is deleted."""
    newest, middle, oldest = await add_backups(3)
    first = await clusters.ListBackups(pb.ListClusterBackupsRequest(cluster_id="c1", page_size=1))

    await sql.execute("DELETE FROM backups WHERE id = $1", newest.id)
    rest = await clusters.ListBackups(pb.ListClusterBackupsRequest(cluster_id="c1", page_token=first.next_page_token))

    assert [backup.id for backup in rest.backups] == [middle.id, oldest.id]


async def test_next_page_after_a_move(clusters: pb.ClusterServiceStub, add_backups: AddBackups, sql: Sql) -> None:
    """A page token stays valid after the cluster has moved to another folder."""
    backups = await add_backups(5)
    first = await clusters.ListBackups(pb.ListClusterBackupsRequest(cluster_id="c1", page_size=2))

    await sql.execute("UPDATE backups SET folder_id = 'f2'")
    rest = await clusters.ListBackups(pb.ListClusterBackupsRequest(cluster_id="c1", page_token=first.next_page_token))

    assert [backup.id for backup in rest.backups] == [backup.id for backup in backups[2:]]


async def test_backups_in_another_folder(guarded_channel: StartGuardedChannel, issuer: Issuer, jwks: Path, add_backups: AddBackups) -> None:
    """Backups of the cluster outside its folder, the first one in byte order, are not listed, for callers of any folder."""
    listed = await add_backups(3, folder_id="f1")
    await add_backups(2, folder_id="f2")
    async with guarded_channel(jwks) as channel:
        for folders in ("*", ["f1", "f2"], ["f1"]):
            metadata = [("authorization", f"Bearer {issuer.token('k1', folders=folders)}")]
            response = await pb.ClusterServiceStub(channel).ListBackups(pb.ListClusterBackupsRequest(cluster_id="c1"), metadata=metadata)
            assert [backup.id for backup in response.backups] == [backup.id for backup in listed]
        metadata = [("authorization", f"Bearer {issuer.token('k1', folders=['f2'])}")]
        assert await pb.ClusterServiceStub(channel).ListBackups(pb.ListClusterBackupsRequest(cluster_id="c1"), metadata=metadata) == _EMPTY


async def test_hidden_cluster(guarded_channel: StartGuardedChannel, issuer: Issuer, jwks: Path, add_backups: AddBackups) -> None:
    """For a caller that may not read its folder, a cluster gives the same responses and errors as an unknown cluster."""
    backups = await add_backups(3, folder_id="f2", source_cluster_id="hidden")
    async with guarded_channel(jwks) as channel:
        clusters = pb.ClusterServiceStub(channel)
        everything = [("authorization", f"Bearer {issuer.token('k1', folders='*')}")]
        shown = await clusters.ListBackups(pb.ListClusterBackupsRequest(cluster_id="hidden", page_size=1), metadata=everything)
        assert [backup.id for backup in shown.backups] == [backups[0].id]
        for folders in (["f1"], []):
            metadata = [("authorization", f"Bearer {issuer.token('k1', folders=folders)}"), ("x-request-id", "r1")]
            token = {"hidden": shown.next_page_token, "unknown": _token("unknown", shown.next_page_token)}
            for cluster_id, page_token in token.items():
                for request in (
                    pb.ListClusterBackupsRequest(cluster_id=cluster_id),
                    pb.ListClusterBackupsRequest(cluster_id=cluster_id, page_token=page_token),
                ):
                    assert await clusters.ListBackups(request, metadata=metadata) == _EMPTY
            errors = [
                await failure(clusters.ListBackups(pb.ListClusterBackupsRequest(cluster_id=each, page_token="x" * 40), metadata=metadata))
                for each in token
            ]
            assert errors[0] == errors[1]
            assert (errors[0].code, errors[0].reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


def _token(cluster_id: str, token: str) -> str:
    """Return a token of another cluster with the position of this token."""
    position = PageTokens().open(token, cluster_scope("hidden"))
    assert position
    return PageTokens().seal(position, cluster_scope(cluster_id))


async def test_without_a_token(guarded_channel: StartGuardedChannel, jwks: Path) -> None:
    """A call without a bearer token is UNAUTHENTICATED."""
    async with guarded_channel(jwks) as channel:
        error = await failure(pb.ClusterServiceStub(channel).ListBackups(pb.ListClusterBackupsRequest(cluster_id="c1")))
        assert error.code is StatusCode.UNAUTHENTICATED


async def test_tokens_of_other_lists(channel: grpc.aio.Channel, clusters: pb.ClusterServiceStub, add_backups: AddBackups) -> None:
    """A page token of another cluster, or of the folder with the same id, is INVALID_ARGUMENT, and a cluster's token is for a folder."""
    await add_backups(3, folder_id="same", source_cluster_id="same")
    await add_backups(3, folder_id="same", source_cluster_id="other")
    folders = folder_pages(pb.BackupServiceStub(channel), "same")
    of_folder = (await folders(1, "")).next_page_token
    same, other = (cluster_pages(clusters, each) for each in ("same", "other"))
    of_same, of_other = [(await each(1, "")).next_page_token for each in (same, other)]
    assert len({of_folder, of_same, of_other}) == 3
    for call in (same(1, of_folder), same(1, of_other), other(1, of_same), folders(1, of_same)):
        error = await failure(call)
        assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")
        assert [field for field, _ in error.violations] == ["page_token"]
    assert PageTokens().open(of_folder, folder_scope("same"))


async def test_fields_beyond_limits(clusters: pb.ClusterServiceStub) -> None:
    """INVALID_ARGUMENT names every field that is beyond a limit of the contract."""
    error = await failure(clusters.ListBackups(pb.ListClusterBackupsRequest(cluster_id="c" * 51, page_size=1001, page_token="t" * 101)))
    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert [field for field, _ in error.violations] == ["cluster_id", "page_size", "page_token"]
    error = await failure(clusters.ListBackups(pb.ListClusterBackupsRequest(page_size=-1)))
    assert error.violations == [("cluster_id", "Is required."), ("page_size", "Must be from 0 to 1000.")]


async def test_methods_that_are_not_served(channel: grpc.aio.Channel) -> None:
    """The public API's other methods of clusters are UNIMPLEMENTED."""
    for method in ("Get", "List", "Create", "Delete", "ListLogs"):
        call: grpc.aio.UnaryUnaryMultiCallable = channel.unary_unary(f"/{pb.CLUSTER_SERVICE}/{method}")  # type: ignore[type-arg]
        assert await call(b"").code() is StatusCode.UNIMPLEMENTED
