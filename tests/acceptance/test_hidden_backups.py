"""Hidden and absent backups: a client cannot tell them apart, by bytes or by time.

The service fetches the row and compares its folder by a set lookup, whose time does not depend on the number of folders
(docs/decisions/0009-where-a-folder-is-compared.md). Times are measured with a token of 12 KiB.
"""

import base64
import contextlib
import itertools
import math
import random
import statistics
import string
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from grpc import StatusCode

from service import pb
from service.settings import Address
from tests.support.catalog import AddBackups, Backup
from tests.support.deployment import Deployment, ReplicaProcess, deployed
from tests.support.guarantees import Measure
from tests.support.http2 import Connection, message
from tests.support.ports import free_ports
from tests.support.releases import Change, altered
from tests.support.repository import ROOT
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

# The folders of a token of 12 KiB, whose ids are as short as ids can be.
_FOLDERS = ["f1", *map("".join, itertools.islice(itertools.product(string.ascii_letters, repeat=2), 1749))]
_TOKEN_SIZE = range(11 * 1024, 12 * 1024 + 1)

_GET = "/yandex.cloud.mdb.greenplum.v1.BackupService/Get"
_REST = "/managed-greenplum/v1/backups/"
_OF_ONE_CALL = {"x-request-id", "date", "x-envoy-upstream-service-time"}

_PLANTED_US = 20
_ALIKE_US = _PLANTED_US  # what this test surely tells

# A sample is the mean difference, in µs, of so many pairs of calls, one of each kind; without the half that differs most, where the
# machine did something else. What is left is the time that PostgreSQL takes to send a row and asyncpg to decode it.
_PAIRS = 200
_TRIMMED = 50  # at either end
_SAMPLES = (25, 600)
_ERRORS = 3.3  # standard errors on either side: wrong once in a thousand times
_CLOSE_US = 2.5

_NO_ROWS = "        if not rows or "
_PLANT = Change(
    "service/postgres/catalog.py",
    _NO_ROWS,
    f"""        import time
        end = time.perf_counter_ns() + {_PLANTED_US * 1000}
        while not backup_id.endswith("x") and time.perf_counter_ns() < end:
            pass
{_NO_ROWS}""",
)


@pytest.mark.guarantee(11, "Get of a backup that the caller may not see, and of one that is not there: the same bytes")
async def test_the_same_bytes(database_url: str, add_backups: AddBackups, *, measure: Measure) -> None:
    """Frame by frame at a replica, and header by header over REST, but for the ids of request and backup."""
    [hidden] = await add_backups(1, folder_id="f2")
    absent = hidden.id[::-1]
    async with deployed(database_url, replicas=1) as deployment:
        token = deployment.token("f1")
        seen, other = [await _frames(deployment, token, each) for each in (hidden.id, absent)]
        headers = {"authorization": f"Bearer {token}"}
        rest = [await deployment.rest(_REST + each, headers=headers) for each in (hidden.id, absent)]
        own = await deployment.rest(_REST + hidden.id)
    assert own.status == 200  # it is there
    assert seen == other
    assert [each.status for each in rest] == [404, 404]
    bodies = [str(each.body).replace(id_, "…") for each, id_ in zip(rest, (hidden.id, absent), strict=True)]
    alike = [{key: value for key, value in each.headers.items() if key not in _OF_ONE_CALL} for each in rest]
    assert alike[0] == alike[1]
    assert rest[0].headers.keys() == rest[1].headers.keys()
    assert bodies[0].replace(rest[0].headers["x-request-id"], "…") == bodies[1].replace(rest[1].headers["x-request-id"], "…")
    measure(f"a replica's frames: {len(seen)}; over REST {rest[0].status}, {len(rest[0].headers)} headers and the body")


async def _frames(deployment: Deployment, token: str, backup_id: str) -> list[tuple[object, ...]]:
    """What a replica answers with, from a connection of its own, with both ids replaced."""
    [replica] = deployment.replicas
    assert isinstance(replica, ReplicaProcess)
    found: list[tuple[object, ...]] = []
    async with Connection.to(Address("127.0.0.1", replica.port)) as connection:
        body = message(pb.GetBackupRequest(backup_id=backup_id).SerializeToString())
        stream = await connection.call(_GET, body, token=token)
        for frame in await connection.frames_of(stream):
            headers = connection.headers(frame)
            request_id = headers.pop("x-request-id")
            details = base64.b64decode(headers.pop("grpc-status-details-bin") + "==")
            assert backup_id.encode() in details
            neutral = details.replace(backup_id.encode(), b"backup").replace(request_id.encode(), b"request")
            found.append((type(frame).__name__, frozenset(frame.flags), *headers.items(), len(request_id), neutral))
    return found


class Difference(NamedTuple):
    """By how much longer the hidden take, in µs, surely between two bounds."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.1f} to {self.high:.1f} µs"


@pytest.mark.guarantee(11, "the same in time, by a test that tells a difference of 20 µs planted on purpose")
@pytest.mark.timeout(3600)
async def test_alike_in_time(database_url: str, add_backups: AddBackups, tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """Calls of both kinds in turn, in a random order, here and at a replica with 20 µs planted: what is hidden takes within 20 µs as
    long as what is absent, and surely longer where more is planted than where nothing is."""
    if not long:
        pytest.skip("needs up to half a million calls: make soak")
    hidden = await add_backups(500, folder_id="f2")
    async with (
        _caller(database_url, tmp_path / "product", ROOT) as product,
        _caller(database_url, tmp_path / "planted", altered(tmp_path / "altered", _PLANT)) as planted,
    ):
        found, told = await _measured([product, planted], hidden)
    measure(f"what is hidden takes {found} longer; with {_PLANTED_US} µs planted, {told}")
    assert -_ALIKE_US < found.low < found.high < _ALIKE_US
    assert found.high < told.low


@contextlib.asynccontextmanager
async def _caller(database_url: str, folder: Path, release: Path) -> AsyncIterator[pb.BackupServiceStub]:
    """A client of a replica that runs this code; it may read another folder."""
    folder.mkdir()
    [port] = free_ports(1)
    issuer, jwks = Issuer("main"), folder / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    auth = {"BACKUPS_AUTH": "jwt", "BACKUPS_JWKS": str(jwks), "BACKUPS_JWT_ISSUER": ISSUER, "BACKUPS_JWT_AUDIENCE": AUDIENCE}
    replica = ReplicaProcess(port, {"BACKUPS_DATABASE_URL": database_url, "BACKUPS_LOG_LEVEL": "warning"} | auth, folder / "log")
    replica.release = release
    async with replica.running():
        token = issuer.token("main", exp=int(time.time()) + 3600, folders=_FOLDERS)
        assert len(token) in _TOKEN_SIZE
        metadata = grpc.access_token_call_credentials(token)
        credentials = grpc.composite_channel_credentials(grpc.local_channel_credentials(), metadata)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            stub = pb.BackupServiceStub(channel)
            await stub.List(pb.ListBackupsRequest(folder_id="f1"), wait_for_ready=True, timeout=30)
            yield stub


async def _measured(stubs: list[pb.BackupServiceStub], hidden: list[Backup]) -> list[Difference]:
    """Of each replica, in turn, until the bounds are close enough, or there are too many samples."""
    samples: list[list[float]] = [[] for _ in stubs]
    while True:
        for stub, each in zip(stubs, samples, strict=True):
            each.append(await _sample(stub, hidden))
        if (count := len(samples[0])) < _SAMPLES[0]:
            continue
        errors = [_ERRORS * statistics.stdev(each) / math.sqrt(count) for each in samples]
        if max(errors) < _CLOSE_US or count == _SAMPLES[1]:
            means = map(statistics.fmean, samples)
            return [Difference(mean - error, mean + error) for mean, error in zip(means, errors, strict=True)]


async def _sample(stub: pb.BackupServiceStub, hidden: list[Backup]) -> float:
    differences: list[float] = []
    for _ in range(_PAIRS):
        backup = random.choice(hidden)
        took: dict[bool, float] = {}
        for is_hidden in random.sample([True, False], 2):
            request = pb.GetBackupRequest(backup_id=backup.id if is_hidden else backup.id[:-1] + "x")
            began = time.perf_counter()
            code = await stub.Get(request).code()
            took[is_hidden] = time.perf_counter() - began
            assert code is StatusCode.NOT_FOUND
        differences.append(took[True] - took[False])
    return statistics.fmean(sorted(differences)[_TRIMMED:-_TRIMMED]) * 1e6
