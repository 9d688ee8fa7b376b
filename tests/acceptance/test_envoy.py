"""Behind Envoy: both APIs over one port, whatever happens to a replica, and whatever a client does to the others."""

import asyncio
from typing import Any

import grpc
from grpc import StatusCode

from service import pb
from tests.support.answers import failure
from tests.support.catalog import AddBackups
from tests.support.certificates import name_shown
from tests.support.deployment import Deployment
from tests.support.load import under_load

_BACKUPS = "/managed-greenplum/v1/backups"


async def test_both_apis(deployment: Deployment, public: grpc.aio.Channel, add_backups: AddBackups) -> None:
    """gRPC and REST answer the same, page by page; JSON has the public API's names, and int64 as text."""
    backups = await add_backups(5)
    stub = pb.BackupServiceStub(public)
    first = await stub.List(pb.ListBackupsRequest(folder_id="f1", page_size=2))
    page = await deployment.rest(f"{_BACKUPS}?folderId=f1&pageSize=2")
    assert page.status == 200
    assert page.headers["content-type"] == "application/json"
    assert [backup["id"] for backup in page.body["backups"]] == [backup.id for backup in first.backups]
    assert page.body["nextPageToken"] == first.next_page_token
    rest = await deployment.rest(f"{_BACKUPS}?folder_id=f1&page_token={first.next_page_token}")
    assert [backup["id"] for backup in rest.body["backups"]] == [backup.id for backup in backups[2:]]

    one = await deployment.rest(f"{_BACKUPS}/{backups[0].id}")
    assert one.body == {
        "id": backups[0].id,
        "folderId": "f1",
        "createdAt": "2026-11-20T12:00:00.123456Z",
        "sourceClusterId": "c1",
        "startedAt": "2026-11-20T11:00:00.123456Z",
        "size": "1000",
    }
    assert (await deployment.rest(f"{_BACKUPS}?folderId=none")).body == {}


async def test_errors_of_the_service_over_rest(deployment: Deployment) -> None:
    """An error is google.rpc.Status in JSON, with all its details."""
    for path, status, reason in [
        (f"?folderId={'f' * 51}&pageSize=-1", 400, "INVALID_REQUEST"),
        ("?folderId=f&pageToken=x", 400, "INVALID_PAGE_TOKEN"),
        ("/none", 404, "BACKUP_NOT_FOUND"),
        ("/", 400, "INVALID_REQUEST"),  # List, without a folder
        ("/%00", 404, "BACKUP_NOT_FOUND"),
        ("/%FF", 400, "UNDECODABLE_REQUEST"),
    ]:
        reply = await deployment.rest(f"{_BACKUPS}{path}", headers={"x-request-id": "mine"})
        assert (path, reply.status, reply.headers["content-type"]) == (path, status, "application/json")
        details = {detail["@type"].rpartition(".")[2]: detail for detail in reply.body["details"]}
        assert details["ErrorInfo"]["reason"] == reason
        assert details["RequestInfo"]["requestId"] == "mine"


async def test_errors_of_envoy_over_rest(deployment: Deployment) -> None:
    """Unknown paths and parameters and values of a wrong type are google.rpc.Status in JSON too."""
    for path, method, status in [
        ("/nowhere", "GET", 404),
        ("/", "GET", 404),
        (_BACKUPS, "POST", 404),
        (f"{_BACKUPS}?folderId=f&unknown=1", "GET", 400),
        (f"{_BACKUPS}?folderId=f&pageSize=abc", "GET", 400),
        (f"{_BACKUPS}?folderId=f&pageSize=9223372036854775808", "GET", 400),
    ]:
        reply = await deployment.rest(path, method=method)
        assert (path, reply.status, reply.headers["content-type"]) == (path, status, "application/json")
        assert set(reply.body) == {"code", "message"}
        assert reply.body["code"] == {404: StatusCode.UNIMPLEMENTED, 400: StatusCode.INVALID_ARGUMENT}[status].value[0]
        assert reply.body["message"]


async def test_discovery(deployment: Deployment) -> None:
    """Where official clients look first is public over REST too, at the address that is set, without a token."""
    address = f"localhost:{deployment.tls_port}"
    reply = await deployment.rest("/endpoints", headers={"authorization": "none"})
    assert (reply.status, reply.body) == (200, {"endpoints": [{"id": each, "address": address} for each in ("iam", "managed-greenplum")]})
    reply = await deployment.rest("/endpoints/none", headers={"authorization": "none"})
    assert (reply.status, reply.headers["content-type"]) == (404, "application/json")
    assert "API_ENDPOINT_NOT_FOUND" in str(reply.body)


async def test_native_grpc_passes_through(deployment: Deployment, public: grpc.aio.Channel) -> None:
    """gRPC's errors arrive as the service sent them, and unknown methods are UNIMPLEMENTED."""
    stub = pb.BackupServiceStub(public)
    answer = await failure(stub.List(pb.ListBackupsRequest(folder_id="f" * 51)))
    assert (answer.code, answer.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    unknown: Any = public.unary_unary("/yandex.cloud.mdb.greenplum.v1.BackupService/Delete")
    assert await unknown(b"").code() is StatusCode.UNIMPLEMENTED
    for size in (3_000, 9_000, 16_000):
        for _ in range(5):
            assert (await failure(stub.Get(pb.GetBackupRequest(backup_id="Ж" * (size // 2))))).code is StatusCode.NOT_FOUND


async def test_no_database(deployment: Deployment, public: grpc.aio.Channel, sql: Any) -> None:
    """Where no replica can serve, both APIs say UNAVAILABLE, and nothing is ejected for it."""
    await sql.execute("ALTER TABLE alembic_version RENAME TO hidden")
    await deployment.until_healthy(0)
    reply = await deployment.rest(f"{_BACKUPS}?folderId=f")
    assert reply.status == 200  # the replicas can still answer, and so they do
    await sql.execute("ALTER TABLE hidden RENAME TO alembic_version")
    await deployment.until_healthy(2)


async def test_a_clients_mistakes_eject_nobody(deployment: Deployment, public: grpc.aio.Channel) -> None:
    """Deadlines that are too short, and statuses that a client causes, are no reason to take a replica away from others."""
    stub = pb.BackupServiceStub(public)
    for _ in range(40):
        await stub.List(pb.ListBackupsRequest(folder_id="f"), timeout=0.0005).code()
        await stub.Get(pb.GetBackupRequest(backup_id="none")).code()
    stats = await deployment.stats("cluster.service.outlier_detection")
    assert stats["cluster.service.outlier_detection.ejections_active"] == 0
    assert stats["cluster.service.outlier_detection.ejections_enforced_total"] == 0


async def test_one_clients_header_breaks_no_other(deployment: Deployment, public: grpc.aio.Channel) -> None:
    """A header that cannot be parsed stays a matter of the call that has it."""
    stub = pb.BackupServiceStub(public)
    for _ in range(3):
        bad: Any = await deployment.rest(f"{_BACKUPS}?folderId=f", headers={"grpc-timeout": "abc"})
        assert bad.status >= 200
    codes = [await stub.List(pb.ListBackupsRequest(folder_id="f"), timeout=10).code() for _ in range(20)]
    assert codes == [StatusCode.OK] * 20


async def test_queries_are_in_no_log(deployment: Deployment, add_backups: AddBackups) -> None:
    """Page tokens and ids, which REST has in its URLs, are in no log of the service."""
    await deployment.rest(f"{_BACKUPS}?folderId=f1&pageToken=secret-token", headers={"x-request-id": "find-me"})
    lines: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        while not any(line.get("request_id") == "find-me" for line in lines):
            await asyncio.sleep(0.01)
            lines = [line for replica in deployment.replicas for line in replica.log()]
    assert "secret-token" not in str(lines)


async def test_plaintext(deployment: Deployment) -> None:
    """The plaintext port, for what is on this machine, serves the same, and wants the same tokens."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{deployment.port}") as channel:
        list_backups: Any = pb.BackupServiceStub(channel).List
        request = pb.ListBackupsRequest(folder_id="f1")
        assert await list_backups(request).code() is StatusCode.UNAUTHENTICATED
        assert await list_backups(request, metadata=[("authorization", f"Bearer {deployment.token()}")]).code() is StatusCode.OK


async def test_tokens(deployment: Deployment, add_backups: AddBackups) -> None:
    """Both APIs reject calls without a token and calls for folders that are not in the token; REST errors have a reason."""
    [backup] = await add_backups(1)
    for token, path, status, reason in [
        ("", f"{_BACKUPS}?folderId=f1", 401, "UNAUTHENTICATED"),
        ("t1.opaque", f"{_BACKUPS}?folderId=f1", 401, "UNAUTHENTICATED"),
        (deployment.token("f2"), f"{_BACKUPS}?folderId=f1", 403, "PERMISSION_DENIED"),
        (deployment.token("f2"), f"{_BACKUPS}/{backup.id}", 404, "BACKUP_NOT_FOUND"),
    ]:
        reply = await deployment.rest(path, headers={"authorization": f"Bearer {token}"})
        assert (token, reply.status, reply.headers["content-type"]) == (token, status, "application/json")
        assert reason in [detail.get("reason") for detail in reply.body["details"]]
    async with deployment.channel(deployment.token("f2")) as channel:
        stub = pb.BackupServiceStub(channel)
        assert (await failure(stub.List(pb.ListBackupsRequest(folder_id="f1")))).code is StatusCode.PERMISSION_DENIED
        await stub.List(pb.ListBackupsRequest(folder_id="f2"))


async def test_certificate_is_renewed(deployment: Deployment) -> None:
    """Envoy reloads its certificate when new files are moved into place, and no call fails."""

    async def renew() -> None:
        deployment.certificate.move(deployment.authority.pair("second"))
        async with asyncio.timeout(20):
            while await name_shown("127.0.0.1", deployment.tls_port, deployment.authority) != "second":
                await asyncio.sleep(0.05)

    outcomes = await under_load(deployment, renew)
    assert outcomes.codes == {"OK", "HTTP 200"}
