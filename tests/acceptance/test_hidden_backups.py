"""Hidden and absent backups and clusters, which a client cannot distinguish by bytes or by time.

The service compares the folder by a set lookup, whose time does not depend on the number of folders
(docs/decisions/0009-folder-comparison.md). Times are measured with a token of 12 KiB, and a hidden cluster has 10,000 backups.
"""

import base64
import contextlib
import itertools
import math
import random
import statistics
import string
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from hyperframe.frame import DataFrame, HeadersFrame

from service import pb
from service.address import Address
from service.backup import Page
from service.errors import BackupNotFound
from service.postgres.catalog import Catalog
from service.postgres.database import open_database
from tests.support.catalog import AddBackups
from tests.support.deployment import Deployment, ReplicaProcess, deployed, until_answered
from tests.support.guarantees import Measure
from tests.support.http2 import Connection, message
from tests.support.limits import LIMITS
from tests.support.ports import free_ports
from tests.support.releases import Change, altered
from tests.support.repository import ROOT
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

# Folders of a token of 12 KiB; the shortest ids make the longest list.
_FOLDERS = ["f1", *map("".join, itertools.islice(itertools.product(string.ascii_letters, repeat=2), 1749))]
_TOKEN_SIZE = range(11 * 1024, 12 * 1024 + 1)

_BACKUPS, _CLUSTERS = "/managed-greenplum/v1/backups/", "/managed-greenplum/v1/clusters/"
_HEADERS_OF_ONE_CALL = {"x-request-id", "date", "x-envoy-upstream-service-time"}

_HIDDEN_BACKUPS = 10_000

_INJECTED_US = 20
_BOUND_US = _INJECTED_US  # this test detects a difference of this size

# A sample is the mean difference in µs over this many pairs of calls, one of each kind, without the half of the pairs that differ most,
# in which the machine was busy with something else. The rest is the time in which PostgreSQL sends a row and asyncpg decodes it.
_PAIRS = 200
_TRIMMED = 50  # at either end
_SAMPLES = (25, 600)
_ERRORS = 3.3  # standard errors on either side: wrong once in a thousand times
_CLOSE_US = 2.5


class Resource(NamedTuple):
    """A kind of resource that may be hidden, and the method that reads it."""

    method: str
    field: str
    request: type[Message]
    response: type[Message]
    outcome: StatusCode
    """Status of a hidden or absent one."""
    compares: str
    """The first line of the service's code after the query."""

    def call(self, channel: grpc.aio.Channel, id_: str) -> Any:
        method: Any = channel.unary_unary(
            self.method, request_serializer=self.request.SerializeToString, response_deserializer=self.response.FromString
        )
        return method(self.request(**{self.field: id_}))

    @property
    def injection(self) -> Change:
        """A delay for every id but those of absent ones, which end with x."""
        return Change(
            "service/postgres/catalog.py",
            self.compares,
            f"""        import time
        end = time.perf_counter_ns() + {_INJECTED_US * 1000}
        while not {self.field}.endswith("x") and time.perf_counter_ns() < end:
            pass
{self.compares}""",
        )


_BACKUP = Resource(
    f"/{pb.BACKUP_SERVICE}/Get", "backup_id", pb.GetBackupRequest, pb.Backup, StatusCode.NOT_FOUND, "        if row is None or "
)
_CLUSTER = Resource(
    f"/{pb.CLUSTER_SERVICE}/ListBackups",
    "cluster_id",
    pb.ListClusterBackupsRequest,
    pb.ListClusterBackupsResponse,
    StatusCode.OK,
    "        if found is None or ",
)


@pytest.mark.guarantee(11, "Get of a hidden backup and of an absent one: the same bytes")
async def test_same_bytes(database_url: str, add_backups: AddBackups, *, measure: Measure) -> None:
    """Get of a hidden and of an absent backup give the same frames of a replica and the same REST response, except for the ids."""
    [hidden] = await add_backups(1, folder_id="f2")
    absent = hidden.id[::-1]
    async with deployed(database_url, replicas=1) as deployment:
        token = deployment.token("f1")
        replies = [await _frames(deployment, token, each) for each in (hidden.id, absent)]
        headers = {"authorization": f"Bearer {token}"}
        rest = [await deployment.rest(_BACKUPS + each, headers=headers) for each in (hidden.id, absent)]
        own = await deployment.rest(_BACKUPS + hidden.id)
    assert own.status == 200  # it exists
    assert replies[0] == replies[1]
    assert [each.status for each in rest] == [404, 404]
    bodies = [str(each.body).replace(id_, "…") for each, id_ in zip(rest, (hidden.id, absent), strict=True)]
    alike = [{key: value for key, value in each.headers.items() if key not in _HEADERS_OF_ONE_CALL} for each in rest]
    assert alike[0] == alike[1]
    assert rest[0].headers.keys() == rest[1].headers.keys()
    assert bodies[0].replace(rest[0].headers["x-request-id"], "…") == bodies[1].replace(rest[1].headers["x-request-id"], "…")
    measure(f"a replica's frames: {len(replies[0])}; over REST {rest[0].status}, {len(rest[0].headers)} headers and the body")


@pytest.mark.guarantee(11, "ListBackups of a hidden cluster and of an absent one: the same bytes")
async def test_same_bytes_of_clusters(database_url: str, add_backups: AddBackups, *, measure: Measure) -> None:
    """ListBackups of a hidden and of an absent cluster give the same empty frames of a replica and the same REST response."""
    await add_backups(3, folder_id="f2", source_cluster_id="hidden")
    async with deployed(database_url, replicas=1) as deployment:
        token = deployment.token("f1")
        frames = [await _page_frames(deployment, token, each) for each in ("hidden", "absent")]
        headers = {"authorization": f"Bearer {token}"}
        rest = [await deployment.rest(f"{_CLUSTERS}{each}/backups", headers=headers) for each in ("hidden", "absent")]
        own = await deployment.rest(f"{_CLUSTERS}hidden/backups")
    assert len(own.body["backups"]) == 3  # it exists
    assert frames[0] == frames[1]
    assert [(each.status, each.body) for each in rest] == [(200, {}), (200, {})]
    alike = [{key: value for key, value in each.headers.items() if key not in _HEADERS_OF_ONE_CALL} for each in rest]
    assert alike[0] == alike[1]
    assert rest[0].headers.keys() == rest[1].headers.keys()
    measure(f"a replica's frames: {len(frames[0])}; over REST {rest[0].status}, {len(rest[0].headers)} headers and the body")


async def _frames(deployment: Deployment, token: str, backup_id: str) -> list[tuple[object, ...]]:
    """Return the frames of a replica's response to Get on a new connection, without the ids of the call and the backup."""
    found: list[tuple[object, ...]] = []
    async with Connection.to(_replica(deployment)) as connection:
        body = message(pb.GetBackupRequest(backup_id=backup_id).SerializeToString())
        stream = await connection.call(_BACKUP.method, body, token=token)
        for frame in await connection.frames_of(stream):
            headers = connection.headers(frame)
            request_id = headers.pop("x-request-id")
            details = base64.b64decode(headers.pop("grpc-status-details-bin") + "==")
            assert backup_id.encode() in details
            neutral = details.replace(backup_id.encode(), b"backup").replace(request_id.encode(), b"request")
            found.append((type(frame).__name__, frozenset(frame.flags), *headers.items(), len(request_id), neutral))
    return found


async def _page_frames(deployment: Deployment, token: str, cluster_id: str) -> list[tuple[object, ...]]:
    """Return the frames of a replica's response to ListBackups on a new connection, without the id of the call."""
    found: list[tuple[object, ...]] = []
    async with Connection.to(_replica(deployment)) as connection:
        body = message(pb.ListClusterBackupsRequest(cluster_id=cluster_id).SerializeToString())
        stream = await connection.call(_CLUSTER.method, body, token=token)
        for frame in await connection.frames_of(stream):
            if isinstance(frame, HeadersFrame):
                content: object = {key: value for key, value in connection.headers(frame).items() if key != "x-request-id"}
            else:
                assert isinstance(frame, DataFrame)
                content = frame.data
            found.append((type(frame).__name__, frozenset(frame.flags), content))
    return found


def _replica(deployment: Deployment) -> Address:
    [replica] = deployment.replicas
    assert isinstance(replica, ReplicaProcess)
    return Address("127.0.0.1", replica.port)


class _LookedUp(frozenset[str]):
    """Folders that can be looked up, but not read one by one."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("the folders are read one by one, so the time depends on their number")


async def test_folders_are_looked_up(database_url: str, add_backups: AddBackups) -> None:
    """A folder is compared by one lookup: the folders of the caller are neither read one by one nor sent to PostgreSQL."""
    [hidden] = await add_backups(1, folder_id="f2", source_cluster_id="hidden")
    folders = _LookedUp(_FOLDERS)
    async with open_database(database_url, LIMITS) as database:
        catalog = Catalog(database)
        for backup_id in (hidden.id, "absent"):
            with pytest.raises(BackupNotFound):
                await catalog.get(backup_id, folders=folders)
        for cluster_id in ("hidden", "absent"):
            assert await catalog.cluster_page(cluster_id, folders=folders, after=None, size=1, client="") == Page(b"")


class Difference(NamedTuple):
    """Bounds, in µs, of the additional time of calls for hidden resources."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.1f} to {self.high:.1f} µs"


@pytest.mark.guarantee(11, "the same in time, by a test that detects an injected difference of 20 µs")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("resource", [_BACKUP, _CLUSTER], ids=["backup", "cluster"])
async def test_same_time(
    resource: Resource, database_url: str, add_backups: AddBackups, tmp_path: Path, *, long: bool, measure: Measure
) -> None:
    """Calls for hidden and absent resources take the same time within 20 µs, and measurably longer with 20 µs injected."""
    if not long:
        pytest.skip("needs up to half a million calls: make soak")
    backups = await add_backups(_HIDDEN_BACKUPS, folder_id="f2", source_cluster_id="hidden-cluster")
    hidden = [backup.id for backup in backups] if resource == _BACKUP else ["hidden-cluster"]
    async with (
        _caller(database_url, tmp_path / "product", ROOT) as product,
        _caller(database_url, tmp_path / "injected", altered(tmp_path / "altered", resource.injection)) as injected,
    ):
        difference, with_delay = await _measured(resource, [product, injected], hidden)
    measure(f"{resource.method}: hidden takes {difference} longer; with {_INJECTED_US} µs injected, {with_delay}")
    assert -_BOUND_US < difference.low < difference.high < _BOUND_US
    assert difference.high < with_delay.low


@contextlib.asynccontextmanager
async def _caller(database_url: str, folder: Path, release: Path) -> AsyncIterator[grpc.aio.Channel]:
    """Start a replica that runs this code, and connect to it as a caller that may read other folders."""
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
            await until_answered(channel)
            yield channel


async def _measured(resource: Resource, channels: list[grpc.aio.Channel], hidden: list[str]) -> list[Difference]:
    """Measure the replicas in turn, until the bounds are close enough or there are too many samples."""
    samples: list[list[float]] = [[] for _ in channels]
    while True:
        for channel, each in zip(channels, samples, strict=True):
            each.append(await _sample(resource, channel, hidden))
        if (count := len(samples[0])) < _SAMPLES[0]:
            continue
        errors = [_ERRORS * statistics.stdev(each) / math.sqrt(count) for each in samples]
        if max(errors) < _CLOSE_US or count == _SAMPLES[1]:
            means = map(statistics.fmean, samples)
            return [Difference(mean - error, mean + error) for mean, error in zip(means, errors, strict=True)]


async def _sample(resource: Resource, channel: grpc.aio.Channel, hidden: list[str]) -> float:
    differences: list[float] = []
    for _ in range(_PAIRS):
        id_ = random.choice(hidden)
        took: dict[bool, float] = {}
        for is_hidden in random.sample([True, False], 2):
            start = time.perf_counter()
            code = await resource.call(channel, id_ if is_hidden else id_[:-1] + "x").code()
            took[is_hidden] = time.perf_counter() - start
            assert code is resource.outcome
        differences.append(took[True] - took[False])
    return statistics.fmean(sorted(differences)[_TRIMMED:-_TRIMMED]) * 1e6
