"""Paging against a model: a plain sorted list, while rows come and go between pages."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from service import pb
from tests.support.catalog import Backup, Sql, insert

_START = datetime(2026, 11, 20, tzinfo=UTC)
_Order = tuple[datetime, str]


def _order(backup: Backup) -> _Order:
    return backup.created_at, backup.id


def machine(stub: pb.BackupServiceStub, sql: Sql, run: Callable[[Callable[[], Awaitable[Any]]], Any]) -> type[RuleBasedStateMachine]:
    """A machine over one server; Hypothesis calls it from a thread of its own, and `run` goes back to the event loop."""

    class Paging(RuleBasedStateMachine):
        """Walks a folder while others insert and delete: nothing is repeated, and nothing missed that was there throughout."""

        def __init__(self) -> None:
            super().__init__()
            self._folder: dict[str, Backup] = {}
            self._numbers = 0
            self._begin()

        def _begin(self) -> None:
            self._token = ""
            self._seen: list[_Order] = []
            self._throughout = {_order(backup) for backup in self._folder.values()}

        @initialize(moments=st.lists(st.integers(0, 3), max_size=30))
        def fill(self, moments: list[int]) -> None:
            run(lambda: sql.execute("TRUNCATE backups"))
            self._insert(moments)
            self._begin()

        def _insert(self, moments: list[int]) -> None:
            new = []
            for moment in moments:
                self._numbers += 1
                backup_id = f"{'aB_~'[self._numbers % 4]}{self._numbers * 7919 % 1000:03}-{self._numbers}"
                new.append(Backup(backup_id, "f1", _START + timedelta(seconds=moment), "c1", _START, self._numbers))
            run(lambda: insert(sql, new))
            self._folder |= {backup.id: backup for backup in new}

        @rule(moments=st.lists(st.integers(0, 3), min_size=1, max_size=5))
        def others_insert(self, moments: list[int]) -> None:
            self._insert(moments)

        @rule(data=st.data())
        def others_delete(self, data: st.DataObject) -> None:
            if self._folder:
                self._delete(data.draw(st.sampled_from(sorted(self._folder))))

        @rule()
        def others_delete_the_row_that_the_token_names(self) -> None:
            if self._seen and self._seen[-1][1] in self._folder:
                self._delete(self._seen[-1][1])

        def _delete(self, backup_id: str) -> None:
            run(lambda: sql.execute("DELETE FROM backups WHERE id = $1", backup_id))
            self._throughout.discard(_order(self._folder.pop(backup_id)))

        @rule(page_size=st.integers(0, 7))
        def next_page(self, page_size: int) -> None:
            request = pb.ListBackupsRequest(folder_id="f1", page_size=page_size, page_token=self._token)
            page = run(lambda: stub.List(request))
            found = [(backup.created_at.ToDatetime(UTC), backup.id) for backup in page.backups]
            rest = sorted((_order(b) for b in self._folder.values() if not self._seen or _order(b) < self._seen[-1]), reverse=True)
            size = page_size or 100
            assert found == rest[:size]
            assert bool(page.next_page_token) == (len(rest) > size)
            self._seen += found
            self._token = page.next_page_token
            if not self._token:
                assert self._throughout <= set(self._seen)
                self._begin()

        @invariant()
        def nothing_is_repeated(self) -> None:
            assert self._seen == sorted(set(self._seen), reverse=True)

    return Paging


async def test_walks_while_rows_come_and_go(stub: pb.BackupServiceStub, sql: Sql) -> None:
    """Every page is what a plain sorted list has after the last row returned, many rows having been completed at one moment."""
    loop = asyncio.get_running_loop()

    async def awaited(call: Callable[[], Awaitable[Any]]) -> Any:
        return await call()

    def run(call: Callable[[], Awaitable[Any]]) -> Any:
        return asyncio.run_coroutine_threadsafe(awaited(call), loop).result(timeout=30)

    paging = machine(stub, sql, run)
    checks = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    await asyncio.to_thread(run_state_machine_as_test, paging, settings=checks)
