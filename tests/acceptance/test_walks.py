"""Walks while everything changes: rows, replicas, the primary.

Mitigations: pages by keyset, whose tokens hold a position and no state of a server (service/page_token.py, service/postgres/catalog.py):
with OFFSET in place of a position, rows are repeated and lost from the first second on. Where the primary changes, also a connection's choice of its
server by `target_session_attrs`, and Patroni's synchronous mode, without which a failover loses what was acknowledged last.
"""

import signal
from pathlib import Path

import pytest

from tests.acceptance.bars import Figure
from tests.acceptance.deployment import deployed
from tests.acceptance.history import History
from tests.acceptance.walks import Folder

_SEED = 14


@pytest.mark.bar(14, "walks while rows come and go and replicas are restarted, checked by the clients' histories")
async def test_walks(database_url: str, owner_url: str, tmp_path: Path, *, long: bool, figure: Figure) -> None:
    """No client sees a row twice, out of order or not at all, while rows come and go and replicas are restarted."""
    clients = 40 if long else 12
    folder = Folder(tmp_path, seed=_SEED)
    async with deployed(database_url) as deployment, folder.written(owner_url, rows=400):
        async with folder.walked("walker", clients, deployment.channel) as outcomes:
            for _ in range(10 if long else 1):
                for replica, number in zip(deployment.replicas, (signal.SIGTERM, signal.SIGKILL), strict=True):
                    await replica.restart(number)
                    await deployment.settled()
    history = History.read(*tmp_path.iterdir())
    figure(f"{clients} clients, {len(history.walks)} walks, {len(history.pages())} pages: {len(history.problems())} problems")
    assert set(outcomes) == {"OK"}
    assert len(history.walks) > clients
    assert history.problems() == []
