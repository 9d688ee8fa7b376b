"""Paging of folders and of clusters, compared with a sorted list while backups are inserted and deleted between pages."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from service import pb
from tests.support.catalog import Backup, Sql, insert
from tests.support.paging import ListPage, cluster_pages, folder_pages

_START = datetime(2026, 11, 20, tzinfo=UTC)
_Order = tuple[datetime, str]
_Run = Callable[[Callable[[], Awaitable[Any]]], Any]
_moments = st.lists(st.integers(0, 3), min_size=1, max_size=5)  # few, so that many backups are completed at the same time


def _order(backup: Backup) -> _Order:
    return backup.created_at, backup.id


class _Paging(RuleBasedStateMachine):
    """Walk through the backups of folder f1 and cluster c1 while other clients insert and delete.

    Hypothesis runs it in a thread of its own; `run` runs a coroutine on the event loop.
    """

    def __init__(self, list_page: ListPage, sql: Sql, run: _Run) -> None:
        super().__init__()
        self._list_page, self._sql, self._run = list_page, sql, run
        self._backups: dict[str, Backup] = {}
        self._numbers = 0
        self._start_walk()

    def _start_walk(self) -> None:
        self._token = ""
        self._seen: list[_Order] = []
        self._throughout = {_order(backup) for backup in self._backups.values()}

    @initialize(moments=st.lists(st.integers(0, 3), max_size=30))
    def fill(self, moments: list[int]) -> None:
        self._run(lambda: self._sql.execute("TRUNCATE backups"))
        self.insert(moments)
        self._start_walk()

    @rule(moments=_moments)
    def insert(self, moments: list[int]) -> None:
        new = self._insert(moments, "f1", "c1")
        self._backups |= {backup.id: backup for backup in new}

    @rule(moments=_moments)
    def insert_elsewhere(self, moments: list[int]) -> None:
        self._insert(moments, "f2", "c2")

    def _insert(self, moments: list[int], folder_id: str, cluster_id: str) -> list[Backup]:
        new = []
        for moment in moments:
            self._numbers += 1
            backup_id = f"{'aB_~'[self._numbers % 4]}{self._numbers * 7919 % 1000:03}-{self._numbers}"
            new.append(Backup(backup_id, folder_id, _START + timedelta(seconds=moment), cluster_id, _START, self._numbers))
        self._run(lambda: insert(self._sql, new))
        return new

    @rule(data=st.data())
    def delete_any(self, data: st.DataObject) -> None:
        if self._backups:
            self._delete(data.draw(st.sampled_from(sorted(self._backups))))

    @rule()
    def delete_the_position_of_the_token(self) -> None:
        if self._seen and self._seen[-1][1] in self._backups:
            self._delete(self._seen[-1][1])

    def _delete(self, backup_id: str) -> None:
        self._run(lambda: self._sql.execute("DELETE FROM backups WHERE id = $1", backup_id))
        self._throughout.discard(_order(self._backups.pop(backup_id)))

    @rule(page_size=st.integers(0, 7))
    def next_page(self, page_size: int) -> None:
        page = self._run(lambda: self._list_page(page_size, self._token))
        found = [(backup.created_at.ToDatetime(UTC), backup.id) for backup in page.backups]
        remaining = sorted((_order(b) for b in self._backups.values() if not self._seen or _order(b) < self._seen[-1]), reverse=True)
        size = page_size or 100
        assert found == remaining[:size]
        assert bool(page.next_page_token) == (len(remaining) > size)
        self._seen += found
        self._token = page.next_page_token
        if not self._token:
            assert self._throughout <= set(self._seen)
            self._start_walk()

    @invariant()
    def nothing_is_repeated(self) -> None:
        assert self._seen == sorted(set(self._seen), reverse=True)


@pytest.mark.parametrize("of", ["folder", "cluster"])
async def test_walks_during_inserts_and_deletes(of: str, channel: grpc.aio.Channel, sql: Sql) -> None:
    """Each page equals the sorted list after the last returned backup, and a walk returns every backup that existed throughout it."""
    pages = {"folder": folder_pages(pb.BackupServiceStub(channel), "f1"), "cluster": cluster_pages(pb.ClusterServiceStub(channel), "c1")}
    loop = asyncio.get_running_loop()

    async def awaited(call: Callable[[], Awaitable[Any]]) -> Any:
        return await call()

    def run(call: Callable[[], Awaitable[Any]]) -> Any:
        return asyncio.run_coroutine_threadsafe(awaited(call), loop).result(timeout=30)

    checks = settings(max_examples=40, stateful_step_count=30, suppress_health_check=list(HealthCheck))
    machine: Any = lambda: _Paging(pages[of], sql, run)  # noqa: E731  # a factory, which Hypothesis declares as a class
    await asyncio.to_thread(run_state_machine_as_test, machine, settings=checks)
