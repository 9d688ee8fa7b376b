"""Walks (reading a folder page by page) while rows, replicas and the primary change.

Mitigation: keyset pagination over (created_at, id), with page tokens that contain a position and no state of a server
(service/page_token.py, service/postgres/catalog.py). With created_at alone, a page that ends between rows of the same time loses rows.
"""

import asyncio
import signal
from pathlib import Path

import pytest

from service.postgres.migration import Roles
from tests.support.deployment import Deployment, deployed
from tests.support.guarantees import Measure
from tests.support.history import History
from tests.support.patroni import patroni_cluster
from tests.support.walks import Folder

_SEED = 14


@pytest.mark.slow
@pytest.mark.guarantee(14, "walks while rows change and replicas restart, checked from the clients' histories")
async def test_changes_of_rows(database_url: str, owner_url: str, tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """While rows change and replicas restart, no call fails, and every client sees each row once and in order."""
    clients = 40 if long else 12
    folder = Folder(tmp_path, seed=_SEED)
    async with deployed(database_url) as deployment, folder.written(owner_url, rows=400):
        async with folder.walked("walker", clients, deployment.channel) as outcomes:
            for _ in range(10 if long else 1):
                await _restart(deployment)
    _check(tmp_path, clients, measure)
    assert set(outcomes) == {"OK"}


@pytest.mark.debian("etcd-server", program="etcd")
@pytest.mark.timeout(900)
@pytest.mark.guarantee(14, "walks while rows and the primary change and replicas restart, checked from the clients' histories")
async def test_changes_of_the_primary(tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """While the primary changes too, walks stay correct, and calls fail only with UNAVAILABLE or DEADLINE_EXCEEDED."""
    if not long:
        pytest.skip("runs only with --long; test_failover.py walks over changes of the primary in CI")
    clients = 40
    folder = Folder(tmp_path, seed=_SEED)
    async with patroni_cluster() as cluster, folder.written(cluster.url("read-write"), rows=400):
        async with deployed(cluster.url("read-write", user=Roles().service)) as deployment:
            async with folder.walked("walker", clients, deployment.channel) as outcomes:
                for _ in range(10):
                    await asyncio.gather(_restart(deployment), cluster.switch_over())
                    await cluster.settled()
    _check(tmp_path, clients, measure)
    assert set(outcomes) <= {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}


async def _restart(deployment: Deployment) -> None:
    for replica, number in zip(deployment.replicas, (signal.SIGTERM, signal.SIGKILL), strict=True):
        await replica.restart(number)
        await deployment.settled()


def _check(histories: Path, clients: int, measure: Measure) -> None:
    history = History.read(*histories.iterdir())
    problems = history.problems()
    measure(f"{clients} clients, {len(history.walks)} walks, {len(history.pages())} pages: {len(problems)} problems")
    assert len(history.walks) > clients
    assert problems[:10] == []
