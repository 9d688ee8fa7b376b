"""Attacks on the deployment by clients at 127.0.0.2, while another client at 127.0.0.3 is measured.

Each attack runs through Envoy with the shipped deploy/envoy.yaml, and directly at a replica. `test_attack_without_protection` removes
one protection at a time, and checks that the attack then succeeds.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from service.address import Address
from tests.support.attacks import ATTACKS, attacking
from tests.support.catalog import AddBackups
from tests.support.deployment import Deployment, ReplicaProcess, deployed
from tests.support.guarantees import Measure
from tests.support.ports import free_ports
from tests.support.releases import Change, altered
from tests.support.repository import ROOT
from tests.support.tokens import AUDIENCE, ISSUER, Issuer
from tests.support.victim import Victim, calling

_P99_S = 1.0
_LONGEST_S = 40.0
_REPLICA_MIB, _ENVOY_MIB = 150, 450  # Envoy's heap is limited to 384 MiB by its overload manager

_GROUPS = {
    "incomplete requests": ("half-sent calls", "half-sent messages", "half-sent REST calls", "watches"),
    "connections and bodies": (
        *("idle connections", "half-sent HTTP/1.1 headers"),
        *("half-sent HTTP/1.1 bodies", "half-sent bodies", "half-sent REST bodies"),
    ),
    "tokens": ("junk tokens", "junk REST tokens"),
    "unread responses": ("unread responses",),
    "unread REST responses": ("unread REST responses",),
}


_DIRECT = [attack for attack in ATTACKS if "REST" not in attack and "HTTP/1.1" not in attack]
_DIRECT_MIB = 250
"""Bound of a replica's memory if there is no Envoy; docs/operating.md explains it."""


class Peak:
    """Largest resident memory of processes while it is measured, in MiB."""

    def __init__(self, pids: list[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self.mib = [0 for _ in pids]

    @contextlib.asynccontextmanager
    async def measured(self) -> AsyncIterator["Peak"]:
        measuring = asyncio.ensure_future(self._measure())
        try:
            yield self
        finally:
            measuring.cancel()

    async def _measure(self) -> None:
        while True:
            for number, process in enumerate(self._processes):
                self.mib[number] = max(self.mib[number], process.memory_info().rss >> 20)
            await asyncio.sleep(0.05)


class Target(NamedTuple):
    """The ports and processes that are attacked, and the port that the victim calls."""

    attacked_port: int
    called_port: int
    token: str
    tls: ssl.SSLContext | None
    replicas: list[int]
    """Their process ids."""
    envoy: list[int]

    @classmethod
    def of(cls, deployment: Deployment) -> "Target":
        """Target Envoy: the attackers in plaintext, the victim over TLS. Both listeners have the same filters."""
        tls = ssl.create_default_context(cadata=deployment.authority.cert.decode())
        tls.set_alpn_protocols(["h2"])
        replicas = [each.pid for each in deployment.replicas if isinstance(each, ReplicaProcess)]
        return cls(deployment.port, deployment.tls_port, deployment.token(), tls, replicas, [deployment.envoy_pid])

    def calling(self) -> contextlib.AbstractAsyncContextManager[Victim]:
        """Run the victim until the context is left."""
        return calling(Address("127.0.0.1", self.called_port), self.token, self.tls, rest=bool(self.envoy))


class Outcome(NamedTuple):
    """The victim's calls, without the attack and during it, and the memory of the processes."""

    attack: str
    before: Victim
    attacked: Victim
    replicas_mib: int
    envoy_mib: int

    @classmethod
    def of(cls, attack: str, before: Victim, attacked: Victim, peak: Peak, replicas: int) -> "Outcome":
        return cls(attack, before, attacked, max(peak.mib[:replicas]), max(peak.mib[replicas:], default=0))

    @property
    def problems(self) -> list[str]:
        """Effects of the attack that exceed the bounds."""
        return [
            *self.attacked.failures[:3],
            *([f"p99 {self.attacked.p99:.1f} s"] if self.attacked.p99 >= self._p99_bound else []),
            *([f"a replica uses {self.replicas_mib} MiB"] if self.replicas_mib >= _REPLICA_MIB else []),
            *([f"Envoy uses {self.envoy_mib} MiB"] if self.envoy_mib >= _ENVOY_MIB else []),
        ]

    @property
    def _p99_bound(self) -> float:
        """A second, or more on a machine that is busy even without the attack."""
        return max(_P99_S, 10 * self.before.p99)

    def __str__(self) -> str:
        ratio = self.attacked.p99 / self.before.p99
        envoy = f", Envoy {self.envoy_mib} MiB" if self.envoy_mib else ""
        return f"{self.attack}: {self.attacked}, {ratio:.1f} times the p99 without; replicas {self.replicas_mib} MiB{envoy}"


async def _attacked(target: Target, attack: str, *, seconds: float, until: Callable[[Outcome], bool] = lambda outcome: True) -> Outcome:
    """Attack for `seconds`, and then until the condition is met, for at most `_LONGEST_S` more."""
    async with target.calling() as before:
        await before.for_seconds(seconds / 3)
    clock = asyncio.get_running_loop().time
    async with Peak(target.replicas + target.envoy).measured() as peak, attacking(attack, target.attacked_port, target.token):
        async with target.calling() as attacked:
            await attacked.for_seconds(seconds)
            end = clock() + _LONGEST_S
            while not until(outcome := Outcome.of(attack, before, attacked, peak, len(target.replicas))) and clock() < end:
                await asyncio.sleep(0.1)
    return outcome


@pytest.mark.slow
@pytest.mark.guarantee(18, "attacks on availability, through Envoy")
@pytest.mark.parametrize("group", _GROUPS)
async def test_attacks_through_envoy(deployment: Deployment, add_backups: AddBackups, group: str, *, long: bool, measure: Measure) -> None:
    """During an attack no call of another client fails, its p99 stays below a second, and memory is bounded."""
    await add_backups(1000)
    target = Target.of(deployment)
    problems: dict[str, list[str]] = {}
    for attack in _GROUPS[group]:
        outcome = await _attacked(target, attack, seconds=10 if long else 2)
        measure(str(outcome))
        problems |= {attack: outcome.problems} if outcome.problems else {}
    assert problems == {}


Edit = Callable[[dict[str, Any]], None]


def _managers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the HTTP connection managers of the public listeners."""
    return [
        listener["filter_chains"][0]["filters"][0]["typed_config"]
        for listener in config["static_resources"]["listeners"]
        if listener["name"] != "metrics"
    ]


_FEW = 200  # fewer calls than an attacker can start before Envoy's rate limit rejects the others


def _forward_at_most(config: dict[str, Any], count: int) -> None:
    """Limit the calls that Envoy has open at the replicas, which all clients share."""
    [service] = [cluster for cluster in config["static_resources"]["clusters"] if cluster["name"] == "service"]
    service["circuit_breakers"]["thresholds"][0]["max_requests"] = count


def _forward_incomplete_requests(config: dict[str, Any]) -> None:
    for manager in _managers(config):
        manager["http_filters"] = [each for each in manager["http_filters"] if "buffer" not in each["name"]]


def _forward_few_incomplete_requests(config: dict[str, Any]) -> None:
    _forward_incomplete_requests(config)
    _forward_at_most(config, _FEW)


def _transcode_incomplete_requests(config: dict[str, Any]) -> None:
    for manager in _managers(config):
        [buffer] = [each for each in manager["http_filters"] if "buffer" in each["name"]]
        manager["http_filters"].remove(buffer)
        manager["http_filters"].insert(-1, buffer)  # before the router


def _serve_watches(config: dict[str, Any]) -> None:
    for manager in _managers(config):
        for host in manager["route_config"]["virtual_hosts"]:
            host["routes"] = [route for route in host["routes"] if "direct_response" not in route]
    _forward_at_most(config, _FEW)


def _limit_connections(config: dict[str, Any]) -> None:
    monitors = config["overload_manager"]["resource_monitors"]
    [limit] = [each["typed_config"] for each in monitors if "max_active_downstream_connections" in each["typed_config"]]
    limit["max_active_downstream_connections"] = 500


def _buffer_much(config: dict[str, Any]) -> None:
    for listener in config["static_resources"]["listeners"]:
        listener["per_connection_buffer_limit_bytes"] = 32 << 20


def _read_responses_ahead(config: dict[str, Any]) -> None:
    [service] = [cluster for cluster in config["static_resources"]["clusters"] if cluster["name"] == "service"]
    [protocol] = service["typed_extension_protocol_options"].values()
    for direction in ("stream", "connection"):
        del protocol["explicit_http_config"]["http2_protocol_options"][f"initial_{direction}_window_size"]
    for manager in _managers(config):
        [limit] = [each["typed_config"] for each in manager["http_filters"] if "local_ratelimit" in each["name"]]
        limit["descriptors"][0]["token_bucket"] |= {"max_tokens": 1000, "tokens_per_fill": 1000}


_ANY_SIZE = Change(
    "service/api/transport/listener.py", '("grpc.max_receive_message_length", MAX_REQUEST_SIZE)', '("grpc.max_receive_message_length", -1)'
)


_RELEASED_EARLY = Change(
    "service/api/running_call.py",
    "        self._answered_at = self.rpc.task.get_loop().time()\n",
    "        self._answered_at = self.rpc.task.get_loop().time()\n"
    "        self._admission.release(self.client, self._cost) if self._cost else None\n"
    "        self._cost = 0\n",
)


class Removal(NamedTuple):
    """An attack, and the changes that remove the protection against it."""

    attack: str
    edit_envoy: Edit = lambda config: None
    changes: tuple[Change, ...] = ()
    envoy_mib: int = _ENVOY_MIB
    """Memory of Envoy that shows that the attack succeeds."""


_REMOVALS = {
    "requests are forwarded before they are complete": Removal("half-sent calls", _forward_few_incomplete_requests),
    "REST requests are forwarded before they are complete": Removal("half-sent REST calls", _forward_few_incomplete_requests),
    "Health/Watch is forwarded": Removal("watches", _serve_watches),
    "fewer connections than the attacker opens": Removal("idle connections", _limit_connections),
    "Envoy reads 32 MiB ahead": Removal("half-sent HTTP/1.1 bodies", _buffer_much, envoy_mib=150),  # 93 MiB with the protection
    "the transcoder buffers REST bodies": Removal("half-sent REST bodies", _transcode_incomplete_requests),
    "a burst of responses queues in Envoy": Removal("unread REST responses", _read_responses_ahead, envoy_mib=300),  # 240 MiB with it
    "bodies of any size": Removal("half-sent bodies", _forward_incomplete_requests, (_ANY_SIZE,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("removed", _REMOVALS)
async def test_attack_without_protection(database_url: str, add_backups: AddBackups, tmp_path: Path, removed: str) -> None:
    """Without its protection, each attack makes another client's calls fail or slow, or takes more memory than allowed."""
    await add_backups(1000)
    removal = _REMOVALS[removed]
    release = altered(tmp_path / "altered", *removal.changes) if removal.changes else ROOT
    async with deployed(database_url, release=release, edit_envoy=removal.edit_envoy) as deployment:

        def succeeds(outcome: Outcome) -> bool:
            return bool(outcome.problems) or outcome.envoy_mib >= removal.envoy_mib

        outcome = await _attacked(Target.of(deployment), removal.attack, seconds=1, until=succeeds)
    assert succeeds(outcome), str(outcome)


@contextlib.asynccontextmanager
async def _replica(database_url: str, folder: Path, release: Path = ROOT) -> AsyncIterator[Target]:
    """Run one replica with authentication and without Envoy."""
    issuer, [port] = Issuer("main"), free_ports(1)
    jwks = folder / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    settings = {
        "BACKUPS_DATABASE_URL": database_url,
        "BACKUPS_DRAIN_DELAY": "0",
        "BACKUPS_AUTH": "jwt",
        "BACKUPS_JWKS": str(jwks),
        "BACKUPS_JWT_ISSUER": ISSUER,
        "BACKUPS_JWT_AUDIENCE": AUDIENCE,
    }
    replica = ReplicaProcess(port, settings, folder / "log")
    replica.release = release
    async with replica.running():
        await replica.serving()
        yield Target(port, port, issuer.token("main", folders=["*"]), None, [replica.pid], [])


@pytest.mark.slow
@pytest.mark.guarantee(18, "the same attacks directly at a replica")
async def test_attacks_at_a_replica(database_url: str, add_backups: AddBackups, tmp_path: Path, *, long: bool, measure: Measure) -> None:
    """During an attack on a replica, calls of other connections succeed, and memory is bounded."""
    await add_backups(1000)
    problems = {}
    async with _replica(database_url, tmp_path) as target:
        for attack in _DIRECT:
            outcome = await _attacked(target, attack, seconds=10 if long else 2)
            measure(str(outcome))
            if outcome.attacked.failures or outcome.replicas_mib >= _DIRECT_MIB:
                problems[attack] = str(outcome)
    assert problems == {}


@pytest.mark.slow
async def test_unread_responses_of_a_replica_without_protection(database_url: str, add_backups: AddBackups, tmp_path: Path) -> None:
    """If a response's cost is released before the response is sent, unread responses exceed the bound of a replica's memory."""
    await add_backups(1000)
    async with _replica(database_url, tmp_path, altered(tmp_path / "altered", _RELEASED_EARLY)) as target:
        outcome = await _attacked(target, "unread responses", seconds=3, until=lambda outcome: outcome.replicas_mib >= _DIRECT_MIB)
    assert outcome.replicas_mib >= _DIRECT_MIB, str(outcome)
