"""Shutdown of one of two Envoys, with the arguments and the preStop hook of the Kubernetes manifests."""

import asyncio
import contextlib
import json
import shlex
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from service import pb
from tests.support.certificates import Authority, Files
from tests.support.deployment import configuration, envoy_binary, fetch
from tests.support.eventually import eventually
from tests.support.manifests import only_container, pre_stop_script
from tests.support.ports import free_ports
from tests.support.repository import ROOT
from tests.support.server import StartServer


@contextlib.asynccontextmanager
async def _envoy(folder: Path, upstream: int) -> AsyncIterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Run Envoy with the manifest's arguments, but a shorter drain time; yield its process, its port and its admin port."""
    folder.mkdir()
    files = Files(folder)
    files.write(Authority().pair("envoy"))
    port, tls_port, admin_port, metrics_port = free_ports(4)
    config = configuration([upstream], folder, port=port, tls_port=tls_port, admin_port=admin_port, metrics_port=metrics_port)
    (folder / "envoy.json").write_text(json.dumps(config), encoding="utf-8")
    arguments = shlex.join(only_container("envoy")["args"]).replace("/etc/envoy/envoy.yaml", str(folder / "envoy.json"))
    arguments = arguments.replace("--drain-time-s 20", "--drain-time-s 2")
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([str(envoy_binary()), *shlex.split(arguments)], cwd=ROOT, stdout=log, stderr=log)

    async def status() -> int:
        assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")[-2000:]
        return (await asyncio.to_thread(fetch, f"http://127.0.0.1:{admin_port}/ready")).status

    try:
        await eventually(status, 200, timeout_s=30, retried=(OSError,))
        yield process, port, admin_port
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def _stop(process: subprocess.Popen[bytes], admin_port: int) -> None:
    """Stop Envoy as Kubernetes does: run the preStop hook, with a shorter delay, and then send SIGTERM."""
    script = pre_stop_script().replace("/9901", f"/{admin_port}").replace("sleep 35", "sleep 4")
    hook = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE)
    stdout, _ = await asyncio.to_thread(hook.communicate)
    assert stdout.split(b" ")[1] == b"200"
    assert process.poll() is None  # the hook alone does not stop Envoy
    process.terminate()
    assert await asyncio.to_thread(process.wait, 20) == 0


async def test_no_call_fails_while_an_envoy_stops(start_server: StartServer, tmp_path: Path) -> None:
    """While one of two Envoys runs its preStop hook and stops, no call fails: its clients use the other one."""
    async with (
        start_server() as server,
        _envoy(tmp_path / "stopping", server.address.port) as (stopping, port, admin_port),
        _envoy(tmp_path / "staying", server.address.port) as (_, other_port, _),
    ):
        # No retry policy. By default, gRPC sends a call again only if it has not left the client.
        options = [("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')]
        async with grpc.aio.insecure_channel(f"ipv4:127.0.0.1:{port},127.0.0.1:{other_port}", options=options) as channel:
            stub = pb.BackupServiceStub(channel)
            stopped, calls = asyncio.Event(), 0

            async def call() -> None:
                nonlocal calls
                while not stopped.is_set():
                    # At most 400 calls a second: Envoy allows 1,000 from one address.
                    await asyncio.gather(stub.List(pb.ListBackupsRequest(folder_id="f1")), asyncio.sleep(0.01))
                    calls += 1

            callers = [asyncio.create_task(call()) for _ in range(4)]
            try:
                await _stop(stopping, admin_port)
                before = calls
                await eventually(lambda: calls >= before + 100 or any(caller.done() for caller in callers), True, timeout_s=20)
            finally:
                stopped.set()
                await asyncio.gather(*callers)
