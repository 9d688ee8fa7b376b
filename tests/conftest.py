"""Fixtures of all tests: a PostgreSQL server for each pytest process, a database for each test, servers, and measurements of guarantees."""

import os
import signal

# Before imports of the project, which read the environment: settings of the machine must not affect tests.
for _name in [name for name in os.environ if name.startswith(("BACKUPS_", "PG", "GRPC_", "OTEL_"))]:
    del os.environ[_name]
# Tests start processes while gRPC runs in this one, and gRPC's fork handlers may crash the child.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
os.environ["GRPC_EXPERIMENTS"] = "-event_engine_listener"  # as service/__main__.py sets it
# Under nohup, or in the background of a shell, these are ignored, and processes that tests start and signal would inherit that.
for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)

import asyncio
import faulthandler
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import hypothesis
import pytest
import uvloop

from service import pb
from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles, migrate
from service.server import Server
from tests.support import processes
from tests.support import server as servers
from tests.support.catalog import OWNER, AddBackups, Backup, Sql, insert
from tests.support.command_server import CommandServer, command_server
from tests.support.commands import Done, RunCommand, environment
from tests.support.debian import debian_program
from tests.support.deployment import Deployment
from tests.support.guarantees import Measure
from tests.support.postgres import execute, new_database, run_postgres
from tests.support.repository import ROOT
from tests.support.server import StartServer

# Durability is off because databases are temporary. Settings of the planner are those of production.
_FAST = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "128MB", "max_connections": "300"}


# Directory of the programs to use instead of those in the wheel, such as /usr/lib/postgresql/15/bin.
_PROGRAMS = Path(os.environ["TEST_POSTGRES"]) if os.environ.get("TEST_POSTGRES") else None

# Hypothesis fails an example that takes longer than 200 ms by default, but no test asserts a speed.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

_TEMPLATE = "template_backups"
_numbers = itertools.count(1)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run tests on the event loop that the server uses."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long forms of the tests under faults")
    parser.addoption("--report", help="file for the measurements of the tests under faults")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes of `-n auto`: one more than there are CPUs, because tests wait for much of their time."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slow tests, so that none of them is left at the end. One process has them all until others are idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `debian(package, program=...)` if the program is not installed, or fail it if REQUIRE_DEBIAN is set, as in CI."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        faulthandler.cancel_dump_traceback_later()  # faulthandler_timeout: without xdist, the timeout dumps the stacks
    for mark in item.iter_markers("debian"):
        [package], program = mark.args, mark.kwargs["program"]
        if debian_program(program):
            continue
        reason = f"{program} is not installed: apt-get install {package}"
        if os.environ.get("REQUIRE_DEBIAN"):
            pytest.fail(f"{reason} (REQUIRE_DEBIAN is set)", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(name="postgres", scope="session")
def _postgres() -> Iterator[EmbeddedPostgres]:
    with run_postgres(_FAST, programs=_PROGRAMS) as postgres:
        asyncio.run(execute(postgres, "; ".join(f"CREATE ROLE {role} LOGIN" for role in (OWNER, *Roles()))))
        yield postgres


@pytest.fixture(name="template", scope="session")
async def _template(postgres: EmbeddedPostgres) -> str:
    """Return the name of a migrated database, which is cloned for each test."""
    await execute(postgres, f"CREATE DATABASE {_TEMPLATE} OWNER {OWNER}")
    await asyncio.to_thread(migrate, postgres.url(_TEMPLATE, user=OWNER))
    return _TEMPLATE


@pytest.fixture(name="database_name")
async def _database_name(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    """Yield the name of a migrated database without rows."""
    async with new_database(postgres, template) as name:
        yield name


@pytest.fixture(name="module_database", scope="module")
async def _module_database(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    """Yield the name of a migrated database that the tests of a module share."""
    async with new_database(postgres, template) as name:
        yield name


@pytest.fixture(name="module_sql", scope="module")
async def _module_sql(postgres: EmbeddedPostgres, module_database: str) -> AsyncIterator[Sql]:
    """Yield a connection to the module's database as a superuser."""
    connection = await asyncpg.connect(postgres.url(module_database))
    yield connection
    await connection.close()


@pytest.fixture(name="database_url")
def _database_url(postgres: EmbeddedPostgres, database_name: str) -> str:
    """Return the URL of the test's database for the service's role, which can read."""
    return postgres.url(database_name, user=Roles().service)


@pytest.fixture(name="import_url")
def _import_url(postgres: EmbeddedPostgres, database_name: str) -> str:
    """Return the URL of the same database for the role of imports, which can write rows."""
    return postgres.url(database_name, user=Roles().imports)


@pytest.fixture(name="owner_url")
def _owner_url(postgres: EmbeddedPostgres, database_name: str) -> str:
    """Return the URL of the same database for the role that owns the schema."""
    return postgres.url(database_name, user=OWNER)


@pytest.fixture(name="empty_database_url")
async def _empty_database_url(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """Yield the URL of a database without a schema, for its owner."""
    async with new_database(postgres, "template1") as name:
        yield postgres.url(name, user=OWNER)


@pytest.fixture(name="sql")
async def _sql(postgres: EmbeddedPostgres, database_name: str) -> AsyncIterator[Sql]:
    """Yield a connection to the test's database as a superuser."""
    connection = await asyncpg.connect(postgres.url(database_name))
    yield connection
    await connection.close()


@pytest.fixture(name="add_backups")
def _add_backups(sql: Sql) -> AddBackups:
    """Return a function that inserts backups, one minute apart, and returns them in the order of `List`."""

    async def add(count: int = 1, **columns: Any) -> list[Backup]:
        first = next(_numbers)
        newest = columns.pop("created_at", datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC))
        step = columns.pop("step", timedelta(minutes=1))
        backups = [
            Backup(
                **{
                    "id": f"backup-{first}-{count - number:06}",
                    "folder_id": "f1",
                    "created_at": newest - number * step,
                    "source_cluster_id": "c1",
                    "started_at": newest - number * step - timedelta(hours=1),
                    "size": 1000 + number,
                }
                | columns
            )
            for number in range(count)
        ]
        await insert(sql, backups)
        return backups

    return add


@pytest.fixture(name="command_server", scope="session")
def _command_server() -> Iterator[CommandServer]:
    with command_server() as server:
        yield server


@pytest.fixture(name="command")
def _command(command_server: CommandServer) -> RunCommand:
    """Return a function that runs `backup-service` in its own process, with settings as keyword arguments."""

    async def run(*arguments: str, stdin: bytes = b"", **settings: str) -> Done:
        if all(name.startswith("BACKUPS_") or name.endswith("_proxy") for name in settings):
            return await command_server.run(*arguments, stdin=stdin, **settings)
        # Variables such as PYTHONUTF8 and LC_ALL have their effect when the interpreter starts.
        done = await processes.run(sys.executable, "-m", "service", *arguments, cwd=ROOT, env=environment(**settings), stdin=stdin)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(name="concurrent_accept")
def _concurrent_accept() -> str | None:
    """BACKUPS_CONCURRENT_ACCEPT of the test's servers: a parameter of tests marked `both_ways_to_accept`, and else None, the default."""
    return None


@pytest.fixture(name="start_server")
def _start_server(database_url: str, concurrent_accept: str | None) -> StartServer:
    """Return a function that starts a server over the test's database, on a free port, with settings as keyword arguments."""

    @asynccontextmanager
    async def start(**settings: Any) -> AsyncIterator[Server]:
        defaults = {"database_url": database_url, "listen": "127.0.0.1:0", "reflection": True, "drain_delay": "0"}
        chosen = {"concurrent_accept": concurrent_accept} if concurrent_accept else {}
        server = await servers.start(**defaults | chosen | settings)
        try:
            yield server
        finally:
            await server.shutdown()

    return start


@pytest.fixture(name="server")
async def _server(start_server: StartServer) -> AsyncIterator[Server]:
    async with start_server() as server:
        yield server


@pytest.fixture(name="channel")
async def _channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        yield channel


@pytest.fixture(name="stub")
def _stub(channel: grpc.aio.Channel) -> pb.BackupServiceStub:
    return pb.BackupServiceStub(channel)


@pytest.fixture(name="public")
async def _public(deployment: Deployment) -> AsyncIterator[grpc.aio.Channel]:
    """Yield a channel to Envoy of the suite's deployment."""
    async with deployment.channel() as channel:
        yield channel


@pytest.fixture(name="long")
def _long(request: pytest.FixtureRequest) -> bool:
    """Return True if the long forms of the fault tests run."""
    return bool(request.config.getoption("long"))


@pytest.fixture(name="measure")
def _measure(request: pytest.FixtureRequest) -> Measure:
    """Return a function that prints a measurement and adds it to the report."""
    mark = request.node.get_closest_marker("guarantee")
    request.node.user_properties.append(("guarantee", mark.args))

    def measure(text: str) -> None:
        print(f"{request.node.name}: {text}")
        request.node.user_properties.append(("measurement", text))

    return measure
