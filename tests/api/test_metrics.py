"""Metrics of the server."""

import asyncio
import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service import VERSION, pb
from service.api.readiness import NotReady
from service.errors import PortTaken
from tests.support.catalog import AddBackups, Sql
from tests.support.certificates import Authority, Files
from tests.support.eventually import eventually
from tests.support.metrics import scrape, value_of
from tests.support.server import StartServer
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

_SERVICE = "yandex.cloud.mdb.greenplum.v1.BackupService"


async def test_calls_are_counted(start_server: StartServer, add_backups: AddBackups) -> None:
    """Calls are counted when they start, and when they end by status, with their duration; no label has a value chosen by a client."""
    [backup] = await add_backups(1)
    async with start_server(metrics_listen="127.0.0.1:0") as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        stub = pb.BackupServiceStub(channel)
        for backup_id in (backup.id, "none", "none", ""):
            await stub.Get(pb.GetBackupRequest(backup_id=backup_id), metadata=[("x-request-id", "chosen")]).code()
        await stub.List(pb.ListBackupsRequest(folder_id="f1"))
        unknown: Any = channel.unary_unary("/a.B/Chosen")
        await unknown(b"").code()
        scraped = await scrape(server)

    get = {"grpc_service": _SERVICE, "grpc_method": "Get", "grpc_type": "unary"}
    assert value_of(scraped, "grpc_server_started_total", **get) == 4
    by_code = {
        code: value_of(scraped, "grpc_server_handled_total", **get, grpc_code=code) for code in ("OK", "NOT_FOUND", "INVALID_ARGUMENT")
    }
    assert by_code == {"OK": 1, "NOT_FOUND": 2, "INVALID_ARGUMENT": 1}
    assert value_of(scraped, "grpc_server_handling_seconds_count", **get) == 4
    assert value_of(scraped, "grpc_server_handled_total", grpc_method="List", grpc_code="OK") == 1
    labels = {label for _, has in scraped for label in has}
    assert not [value for _, value in labels if "hosen" in value or value in (backup.id, "f1")]


async def test_state_of_the_server(start_server: StartServer) -> None:
    """Metrics contain the readiness, the admission limit, the connection pool and the version of the server."""
    async with start_server(metrics_listen="127.0.0.1:0", pool_size=3, admission_limit=7) as server:
        scraped = await eventually(lambda: scrape(server), lambda metrics: value_of(metrics, "backups_ready"))
    assert value_of(scraped, "backups_build_info", version=VERSION) == 1
    assert value_of(scraped, "backups_admission_limit") == 7
    assert value_of(scraped, "backups_admission_in_flight") == 0
    assert value_of(scraped, "backups_pool_size") == 3
    assert 1 <= value_of(scraped, "backups_pool_connections") <= 3


async def test_reason_of_a_replica_that_is_not_ready(start_server: StartServer, tmp_path: Path) -> None:
    """A metric has every reason why a replica can be not ready, with 1 for the current one and none for a ready replica."""
    async with start_server(metrics_listen="127.0.0.1:0") as server:
        scraped = await eventually(lambda: scrape(server), lambda metrics: value_of(metrics, "backups_ready"))
    assert {reason: value_of(scraped, "backups_not_ready", reason=reason) for reason in NotReady} == dict.fromkeys(NotReady, 0)
    jwt = {"auth": "jwt", "jwks": str(tmp_path / "none.json"), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    async with start_server(metrics_listen="127.0.0.1:0", **jwt) as server:
        read = lambda metrics: value_of(metrics, "backups_not_ready", reason=NotReady.KEYS_NEVER_READ)  # noqa: E731
        scraped = await eventually(lambda: scrape(server), read)
    assert sum(value_of(scraped, "backups_not_ready", reason=reason) for reason in NotReady) == 1


async def test_ages(start_server: StartServer, sql: Sql, tmp_path: Path) -> None:
    """Metrics contain the ages of the signing keys and of the last check of the database, and the expiry of the certificate."""
    await sql.execute("ALTER TABLE alembic_version RENAME TO hidden")
    authority, files, jwks = Authority(), Files(tmp_path), tmp_path / "jwks.json"
    files.write(authority.pair("first"))  # valid for a day
    jwt = {"auth": "jwt", "jwks": str(jwks), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwks_refresh": "0.05", "jwks_max_age": "77"}
    async with start_server(metrics_listen="127.0.0.1:0", **jwt, **files.settings) as server:
        before = await scrape(server)
        jwks.write_bytes(Issuer("one").jwks())
        await sql.execute("ALTER TABLE hidden RENAME TO alembic_version")
        after = await eventually(lambda: scrape(server), lambda metrics: value_of(metrics, "backups_ready"), timeout_s=20)
    assert value_of(before, "backups_jwks_age_seconds") == value_of(before, "backups_database_last_check_age_seconds") == math.inf
    assert 0 <= value_of(after, "backups_jwks_age_seconds") < 20
    assert 0 <= value_of(after, "backups_database_last_check_age_seconds") < 20
    assert value_of(after, "backups_jwks_max_age_seconds") == 77
    assert abs(value_of(after, "backups_tls_certificate_expiry_timestamp_seconds") - time.time() - 24 * 3600) < 60


async def test_port_in_use(start_server: StartServer) -> None:
    """If the metrics port is in use, the start fails with a clear error and closes everything."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortTaken, match="BACKUPS_METRICS_LISTEN"):
            async with start_server(metrics_listen=f"127.0.0.1:{taken.getsockname()[1]}"):
                pass


class _Big(Collector):
    """Metric that is larger than the buffers of a socket."""

    def collect(self) -> Iterator[Metric]:
        metric = GaugeMetricFamily("big", "Big.", labels=["number"])
        for number in range(1_000):
            metric.add_metric([f"{number:010000}"], 1)
        yield metric


@pytest.mark.parametrize("sent", [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n"])
async def test_stalled_connections(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], sent: bytes
) -> None:  # fmt: skip
    """A connection that does not send a complete request or read the response is closed with its thread, without a traceback in the log."""
    monkeypatch.setattr("service.observability.metrics._Scrape.timeout", 1)
    async with start_server(metrics_listen="127.0.0.1:0") as server:
        server.metrics.collect(_Big())
        assert server.metrics_address
        threads = threading.active_count()
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(socket.create_connection(server.metrics_address)).sendall(sent)
            await eventually(threading.active_count, lambda count: count > threads, timeout_s=20, period_s=0.001)
            await eventually(threading.active_count, lambda count: count <= threads, timeout_s=20)
    assert "Traceback" not in capfd.readouterr().err


async def test_idle_connections_are_bounded(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 300 idle connections to its port, the server has a few threads for them and answers scrapes."""
    monkeypatch.setattr("service.observability.metrics._Scrape.timeout", 60)  # the limit closes the connections, not the timeout
    async with start_server(metrics_listen="127.0.0.1:0") as server:
        assert server.metrics_address
        threads = threading.active_count()
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection(server.metrics_address, timeout=10)) for _ in range(300)]
            assert value_of(await scrape(server), "backups_build_info") == 1
            await eventually(threading.active_count, lambda count: count <= threads + 20 + 5)  # 5 of the executor that scrapes
            assert await asyncio.to_thread(idle[0].recv, 1) == b""
