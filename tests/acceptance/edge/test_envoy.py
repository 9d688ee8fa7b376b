"""gRPC and REST through Envoy, to two replicas."""

import asyncio
from typing import Any

import grpc
from grpc import StatusCode

from service import pb
from tests.support.catalog import AddBackups
from tests.support.certificates import certificate_name
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.failures import failure
from tests.support.load import under_load

_BACKUPS = "/managed-greenplum/v1/backups"


async def test_both_apis(deployment: Deployment, public: grpc.aio.Channel, add_backups: AddBackups) -> None:
    """gRPC and REST return the same pages; JSON has the field names of the public API, and int64 as a string."""
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


async def test_idle_replicas_log_nothing(deployment: Deployment) -> None:
    """Idle replicas log no line while Envoy checks their health every second."""
    checks = "cluster.service.health_check.success"

    async def more_checks(number: int) -> None:
        before = (await deployment.stats(checks))[checks]
        await eventually(lambda: deployment.stats(checks), lambda stats: stats[checks] >= before + number, timeout_s=60)

    await asyncio.gather(*(replica.serving() for replica in deployment.replicas))
    await more_checks(4)  # by now, the lines of the calls at the start are written
    before = [len(replica.log()) for replica in deployment.replicas]
    await more_checks(10)
    assert [len(replica.log()) for replica in deployment.replicas] == before


async def test_errors_of_the_service_over_rest(deployment: Deployment) -> None:
    """An error of the service is google.rpc.Status in JSON, with all its details."""
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
    """Envoy answers unknown paths, unknown parameters and values of a wrong type with google.rpc.Status in JSON."""
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
    """The endpoints that official clients read first are public over REST, and contain the configured address."""
    address = f"localhost:{deployment.tls_port}"
    reply = await deployment.rest("/endpoints", headers={"authorization": "none"})
    assert (reply.status, reply.body) == (200, {"endpoints": [{"id": each, "address": address} for each in ("iam", "managed-greenplum")]})
    reply = await deployment.rest("/endpoints/none", headers={"authorization": "none"})
    assert (reply.status, reply.headers["content-type"]) == (404, "application/json")
    assert "API_ENDPOINT_NOT_FOUND" in str(reply.body)


async def test_grpc_errors_through_envoy(deployment: Deployment, public: grpc.aio.Channel) -> None:
    """gRPC errors arrive as the service sent them, and unknown methods are UNIMPLEMENTED."""
    stub = pb.BackupServiceStub(public)
    error = await failure(stub.List(pb.ListBackupsRequest(folder_id="f" * 51)))
    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    unknown: Any = public.unary_unary("/yandex.cloud.mdb.greenplum.v1.BackupService/Delete")
    assert await unknown(b"").code() is StatusCode.UNIMPLEMENTED
    for size in (3_000, 9_000, 16_000):
        for _ in range(5):
            assert (await failure(stub.Get(pb.GetBackupRequest(backup_id="Ж" * (size // 2))))).code is StatusCode.NOT_FOUND


async def test_all_replicas_unhealthy(deployment: Deployment, public: grpc.aio.Channel, sql: Any) -> None:
    """If every replica fails its health check, Envoy still sends calls to them."""
    await sql.execute("ALTER TABLE alembic_version RENAME TO hidden")
    await deployment.until_healthy(0)
    reply = await deployment.rest(f"{_BACKUPS}?folderId=f")
    assert reply.status == 200  # List itself does not need the renamed table
    await sql.execute("ALTER TABLE hidden RENAME TO alembic_version")
    await deployment.until_healthy(2)


async def test_client_errors_eject_no_replica(deployment: Deployment, public: grpc.aio.Channel) -> None:
    """Calls that fail because of a client's deadline or request do not make Envoy eject a replica."""
    stub = pb.BackupServiceStub(public)
    for _ in range(40):
        await stub.List(pb.ListBackupsRequest(folder_id="f"), timeout=0.0005).code()
        await stub.Get(pb.GetBackupRequest(backup_id="none")).code()
    stats = await deployment.stats("cluster.service.outlier_detection")
    assert stats["cluster.service.outlier_detection.ejections_active"] == 0
    assert stats["cluster.service.outlier_detection.ejections_enforced_total"] == 0


async def test_invalid_header_affects_only_its_call(deployment: Deployment, public: grpc.aio.Channel) -> None:
    """A header that cannot be parsed affects only the call that has it."""
    stub = pb.BackupServiceStub(public)
    for _ in range(3):
        bad: Any = await deployment.rest(f"{_BACKUPS}?folderId=f", headers={"grpc-timeout": "abc"})
        assert bad.status >= 200
    codes = [await stub.List(pb.ListBackupsRequest(folder_id="f"), timeout=10).code() for _ in range(20)]
    assert codes == [StatusCode.OK] * 20


async def test_queries_are_not_logged(deployment: Deployment, add_backups: AddBackups) -> None:
    """The service does not log page tokens and ids, which REST has in its URLs."""
    await deployment.rest(f"{_BACKUPS}?folderId=f1&pageToken=secret-token", headers={"x-request-id": "find-me"})
    lines = await eventually(
        lambda: [line for replica in deployment.replicas for line in replica.log()],
        lambda lines: any(line.get("request_id") == "find-me" for line in lines),
        timeout_s=20,
    )
    assert "secret-token" not in str(lines)


async def test_plaintext(deployment: Deployment) -> None:
    """The plaintext port for processes on the same machine serves the same API and requires the same tokens."""
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
        await eventually(lambda: certificate_name("127.0.0.1", deployment.tls_port, deployment.authority), "second", timeout_s=20)

    outcomes = await under_load(deployment, renew)
    assert outcomes.codes == {"OK", "HTTP 200"}
