"""Servers that accept several calls of a method at the same time, and servers that accept one at a time."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc
import pytest
from grpc import StatusCode

from service import pb
from service.api.backup_service import BackupService
from service.api.transport import grpc_server
from tests.support.catalog import AddBackups
from tests.support.eventually import eventually
from tests.support.server import StartServer, both_ways_to_accept

_CALLS = 32


def _call_at_once(address: str) -> list[str]:
    """Send calls at the same time from a thread, and return the names of their statuses."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = pb.BackupServiceStub(cast("Any", channel))
        calls = [stub.Get.future(pb.GetBackupRequest(backup_id=f"b{number}"), timeout=30) for number in range(_CALLS)]
        return [call.code().name for call in calls]


async def _iterations_to_accept(start_server: StartServer, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> int:
    """Block the event loop until many calls have arrived. Return the number of its iterations from the first handler to the last one."""
    iteration = 0
    handled: list[int] = []

    def count() -> None:
        nonlocal iteration
        iteration += 1
        if len(handled) < _CALLS:
            loop.call_soon(count)

    async def get(self: BackupService, request: pb.GetBackupRequest, context: object) -> bytes:
        handled.append(iteration)
        return b""

    monkeypatch.setattr(BackupService, "Get", get)
    loop = asyncio.get_running_loop()
    async with start_server(**settings) as server:
        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(_call_at_once, str(server.address))
            time.sleep(0.5)  # noqa: ASYNC251  # blocks the event loop while the calls arrive
            loop.call_soon(count)
            statuses: list[str] = await asyncio.wrap_future(calling)
            assert set(statuses) == {"OK"}
    assert len(handled) == _CALLS
    return handled[-1] - handled[0]


def test_installed_grpcio_is_supported() -> None:
    """The installed grpcio has every private name with the expected parameters.

    If this fails, compare `_server_main_loop` of both versions (docs/decisions/0011-concurrent-accept.md).
    """
    assert grpc_server.changed_name() is None


async def test_calls_are_accepted_together(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that arrive together take fewer iterations of the event loop than calls that are accepted one at a time."""
    together = await _iterations_to_accept(start_server, monkeypatch, concurrent_accept="true")
    one_at_a_time = await _iterations_to_accept(start_server, monkeypatch, concurrent_accept="false")
    assert together < one_at_a_time / 3


@pytest.mark.parametrize("name", grpc_server.PRIVATE_NAMES)
@pytest.mark.parametrize("change", ["removed", "parameters"])
async def test_unsupported_grpcio(
    start_server: StartServer,
    add_backups: AddBackups,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: str,
) -> None:
    """If grpcio has removed or changed a private name, a warning names it and grpcio's version, and calls are answered."""
    names = dict(grpc_server.PRIVATE_NAMES)
    if change == "removed":
        names = {f"{each}_removed" if each == name else each: parameters for each, parameters in names.items()}
    else:
        names[name] = ("self", "other")
    monkeypatch.setattr(grpc_server, "PRIVATE_NAMES", names)
    [backup] = await add_backups(1)
    async with start_server(concurrent_accept="true") as server, grpc.aio.insecure_channel(str(server.address)) as channel:
        response = await pb.BackupServiceStub(channel).Get(pb.GetBackupRequest(backup_id=backup.id))
    assert response.id == backup.id
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "no concurrent accept" in line]
    assert [(line["level"], name in line["problem"], grpc.__version__ in line["problem"]) for line in lines] == [("warning", True, True)]


@both_ways_to_accept
async def test_calls_and_shutdown(start_server: StartServer, add_backups: AddBackups) -> None:
    """Concurrent calls of all kinds, including unknown methods, are answered, and no task is left after shutdown."""
    [backup] = await add_backups(1)
    before = len(asyncio.all_tasks())
    async with start_server() as server:
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            stub, unknown = pb.BackupServiceStub(channel), cast("Any", channel).unary_unary("/unknown.Service/Method")
            gets = [stub.Get(pb.GetBackupRequest(backup_id=backup.id)) for _ in range(50)]
            lists = [stub.List(pb.ListBackupsRequest(folder_id="f1")) for _ in range(50)]
            others = [unknown(b"") for _ in range(50)]
            assert [(await get).id for get in gets] == [backup.id] * 50
            assert [[each.id for each in (await page).backups] for page in lists] == [[backup.id]] * 50
            assert {await other.code() for other in others} == {StatusCode.UNIMPLEMENTED}
    await eventually(lambda: len(asyncio.all_tasks()), before)
