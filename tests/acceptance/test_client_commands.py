"""`list`, `get` and `health` with services of any kind: the protection of tokens, and the errors for bad responses."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from service import pb
from service.cli.client import calls
from service.cli.client.calls import Credentials, Endpoint
from service.cli.client.service_address import ServiceAddress
from service.errors import CallFailed
from tests.support.certificates import Authority
from tests.support.commands import Done, RunCommand
from tests.support.proxy import listening

_TOKEN = "eyJ.secret.token"
_LIST = ("list", "--folder-id", "f1")
_CLEAR = "\x1b[2J"
_NO_TOKEN = Credentials(lambda: None)


class _Service(grpc.GenericRpcHandler):
    """A service that records the bearer tokens that it receives, and answers `List` and `Get` as the test defines."""

    def __init__(self) -> None:
        self.tokens: list[str | None] = []
        self.response: Callable[[bytes], bytes] = lambda _: b""
        self.status: tuple[grpc.StatusCode, str, tuple[tuple[str, Any], ...]] | None = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method == "/grpc.health.v1.Health/Check":
            serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
            return grpc.unary_unary_rpc_method_handler(self._handler(lambda _: serving.SerializeToString()))
        return grpc.unary_unary_rpc_method_handler(self._handler(lambda request: self.response(request)))

    def _handler(self, response: Callable[[bytes], bytes]) -> Any:
        async def handle(request: bytes, context: Any) -> bytes:
            self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
            if self.status:
                await context.abort(*self.status)
            return response(request)

        return handle


@pytest.fixture(name="service")
def _service() -> _Service:
    return _Service()


@contextlib.asynccontextmanager
async def _serving(service: _Service, address: str = "127.0.0.1:0", credentials: Any = None) -> AsyncIterator[int]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service,))
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@pytest.fixture(name="port")
async def _port(service: _Service) -> AsyncIterator[int]:
    async with _serving(service) as port:
        yield port


@pytest.fixture(name="token_file")
def _token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"  {_TOKEN}\n")
    path.chmod(0o600)
    return path


def _message(done: Done) -> str:
    """Return the one error of a command that failed with status 1 and printed nothing else."""
    assert (done.status, done.stdout) == (1, ""), done
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("backup-service: ")
    return done.stderr.removeprefix("backup-service: ").rstrip("\n")


class _Proxy:
    """An HTTP proxy that connects every CONNECT request to one port, and records the hosts that were asked for."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, RuntimeError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head.split()[1].decode())
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(_pass(reader, upstream_writer), _pass(upstream_reader, writer))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    finally:
        writer.close()


# Protection of tokens


@pytest.mark.parametrize("arguments", [_LIST, ("get", "x")])
async def test_no_token_in_plaintext_to_another_machine(
    command: RunCommand, service: _Service, port: int, token_file: Path, arguments: tuple[str, ...]
) -> None:
    """A token is not sent to another machine without TLS unless --insecure is given, neither from the variable nor from a file."""
    proxy = _Proxy(port)
    async with listening(proxy.serve) as proxy_port:
        remote = {"BACKUPS_ADDRESS": "backups.example:80", "http_proxy": f"http://127.0.0.1:{proxy_port}"}
        for source in ({"BACKUPS_TOKEN": _TOKEN}, {"BACKUPS_TOKEN_FILE": str(token_file)}):
            message = _message(await command(*arguments, **remote, **source))
            assert message.startswith("the token was not sent: backups.example:80 is not on this machine")
            assert all(option in message for option in ("--tls", "--ca-file", "--insecure"))
            assert _TOKEN not in message
        assert (proxy.asked, service.tokens) == ([], [])
        assert (await command(*arguments, **remote)).status == 0, "without a token, plaintext is allowed"
        assert (await command(*arguments, "--insecure", **remote, BACKUPS_TOKEN=_TOKEN)).status == 0
    assert service.tokens == [None, f"Bearer {_TOKEN}"]
    assert set(proxy.asked) == {"backups.example:80"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "LOCALHOST", "[::1]"])
async def test_a_token_in_plaintext_on_this_machine(command: RunCommand, service: _Service, host: str) -> None:
    """On loopback addresses a token is sent without TLS, and a proxy of the environment is not used."""
    async with _serving(service, "127.0.0.2:0" if host == "127.0.0.2" else "[::]:0") as port:
        settings = {"BACKUPS_ADDRESS": f"{host}:{port}", "BACKUPS_TOKEN": _TOKEN, "http_proxy": "http://127.0.0.1:1"}
        done = await command(*_LIST, **settings)
        assert (done.status, done.stderr) == (0, "No backups in folder f1.\n")
        assert (await command("health", **settings)).stdout == "SERVING\n"
    assert service.tokens == [f"Bearer {_TOKEN}", None]


async def test_a_unix_socket(command: RunCommand, service: _Service, tmp_path: Path) -> None:
    """A Unix socket is on this machine: a token is sent, and a proxy of the environment is not used."""
    async with _serving(service, f"unix:{tmp_path}/s"):
        done = await command(*_LIST, "--address", f"unix:{tmp_path}/s", BACKUPS_TOKEN=_TOKEN, http_proxy="http://127.0.0.1:1")
    assert done.status == 0
    assert service.tokens == [f"Bearer {_TOKEN}"]


async def test_health_uses_no_proxy(command: RunCommand, port: int) -> None:
    """`health` does not use a proxy of the environment for any host: a probe must reach the service itself."""
    proxy = _Proxy(port)
    async with listening(proxy.serve) as proxy_port:
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), f"http://127.0.0.1:{proxy_port}")
        message = _message(await command("health", "--address", "backups.invalid:80", **proxies))
        assert message.startswith("no service answers at backups.invalid:80")
        assert proxy.asked == []
        assert (await command(*_LIST, "--address", "backups.invalid:80", **proxies)).status == 0
    assert proxy.asked == ["backups.invalid:80"]


async def test_ca_file_alone_means_tls(command: RunCommand, service: _Service, tmp_path: Path) -> None:
    """With --ca-file, a token is sent only over TLS, with or without --tls."""
    authority, ca_file = Authority(), tmp_path / "ca.pem"
    ca_file.write_bytes(authority.cert)
    pair = authority.pair("service")
    async with _serving(service, credentials=grpc.ssl_server_credentials([(pair.key, pair.cert)])) as port:
        done = await command(*_LIST, "--address", f"localhost:{port}", "--ca-file", str(ca_file), BACKUPS_TOKEN=_TOKEN)
        assert done.status == 0, done.stderr
    assert service.tokens == [f"Bearer {_TOKEN}"]


async def test_tls_mismatch(command: RunCommand, service: _Service, port: int, tmp_path: Path) -> None:
    """The error names the mismatch if a TLS client uses a plaintext port, or a plaintext client a TLS port."""
    authority, ca_file = Authority(), tmp_path / "ca.pem"
    ca_file.write_bytes(authority.cert)
    pair = authority.pair("service")
    for arguments, needs_client_certificate in ((_LIST, False), (("health",), True)):
        credentials = grpc.ssl_server_credentials([(pair.key, pair.cert)], authority.cert, require_client_auth=needs_client_certificate)
        async with _serving(service, credentials=credentials) as tls_port:
            message = _message(await command(*arguments, "--address", f"localhost:{tls_port}"))
        assert message.startswith(f"the service at localhost:{tls_port} uses TLS: add --tls, or --ca-file")
    message = _message(await command(*_LIST, "--address", f"localhost:{port}", "--ca-file", str(ca_file)))
    assert message.startswith(f"the service at localhost:{port} does not use TLS: call it without --tls and --ca-file")


async def test_certificates_that_are_not_accepted(command: RunCommand, service: _Service, tmp_path: Path) -> None:
    """The error contains the reason why a certificate is not accepted (another authority or host name), and the token is not sent."""
    authority, ca_file, other = Authority(), tmp_path / "ca.pem", tmp_path / "other.pem"
    ca_file.write_bytes(authority.cert)
    other.write_bytes(Authority("another").cert)
    pair = authority.pair("service", alternative_names=["backups.example.org"])
    async with _serving(service, credentials=grpc.ssl_server_credentials([(pair.key, pair.cert)])) as port:
        address = ("--address", f"localhost:{port}")
        for options, cause in (
            (("--ca-file", str(ca_file)), "Hostname mismatch, certificate is not valid for 'localhost'. "),
            (
                ("--ca-file", str(ca_file), "--server-name", "a.example.org"),
                "Hostname mismatch, certificate is not valid for 'a.example.org'. ",
            ),
            (("--ca-file", str(other), "--server-name", "backups.example.org"), "unable to get local issuer certificate. "),
            (("--server-name", "backups.example.org"), "unable to get local issuer certificate. "),
        ):
            message = _message(await command(*_LIST, *address, *options, BACKUPS_TOKEN=_TOKEN))
            assert message.startswith(f"the certificate of the service at localhost:{port} was not accepted: {cause}Use --ca-file")
    assert service.tokens == []


@pytest.mark.parametrize("as_variables", [False, True])
async def test_server_name(command: RunCommand, service: _Service, tmp_path: Path, *, as_variables: bool) -> None:
    """With --server-name, the certificate must have this name: a tunnel or a container's own name can be the address."""
    authority, ca_file = Authority(), tmp_path / "ca.pem"
    ca_file.write_bytes(authority.cert)
    pair = authority.pair("service", alternative_names=["backups.example.org"])
    options = {"--ca-file": str(ca_file), "--server-name": "backups.example.org"}
    variables = {"BACKUPS_CA_FILE": str(ca_file), "BACKUPS_SERVER_NAME": "backups.example.org"}
    arguments = [] if as_variables else [word for option in options.items() for word in option]
    settings = variables if as_variables else {}
    async with _serving(service, credentials=grpc.ssl_server_credentials([(pair.key, pair.cert)])) as port:
        for subcommand in (_LIST, ("health",)):
            done = await command(*subcommand, "--address", f"localhost:{port}", *arguments, BACKUPS_TOKEN=_TOKEN, **settings)
            assert done.status == 0, done.stderr
    assert service.tokens == [f"Bearer {_TOKEN}", None]


@pytest.mark.parametrize("name", ["", " ", "a b", "backups.example.org:443", "https://backups.example.org", "x" * 300, "[::1]"])
async def test_server_names_that_are_not_host_names(command: RunCommand, name: str) -> None:
    """A server name that no certificate can have is a usage error."""
    done = await command(*_LIST, f"--server-name={name}")
    assert (done.status, done.stdout) == (2, "")
    assert "is not a host name, such as backups.example.org" in done.stderr


# Options and files


async def test_a_service_that_does_not_answer(command: RunCommand) -> None:
    """If a server accepts the connection and never answers, the error names its address and the time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        for options in ((), ("--tls",)):
            message = _message(await command("health", "--address", address, *options))
            assert message == f"{address} did not answer within 3 s: is --address the address of a backup service?"


async def test_an_address_without_a_port(command: RunCommand) -> None:
    """Each command rejects an address without a port, which gRPC would complete with port 443."""
    for arguments in (_LIST, ("get", "x"), ("health",)):
        message = _message(await command(*arguments, BACKUPS_ADDRESS="host"))
        assert message == "'host' is not the address of a service: use host:port, such as 127.0.0.1:50051, or unix:PATH"


async def test_a_token_file_without_a_token(command: RunCommand, service: _Service, port: int, token_file: Path) -> None:
    """A token that cannot be sent is an error with the file's name and without its content, and nothing is sent."""
    token_file.write_bytes(b"hunter2\nx: y\xc3\xa9")
    message = _message(await command(*_LIST, "--address", f"127.0.0.1:{port}", "--token-file", str(token_file)))
    assert message.startswith(f"token file {token_file} does not contain one bearer token")
    assert "hunter2" not in message
    assert service.tokens == []


async def test_a_token_file_that_all_users_can_read(command: RunCommand, service: _Service, port: int, token_file: Path) -> None:
    """A token file that all users can read is used, with one warning."""
    token_file.chmod(0o644)
    service.response = _two_pages
    done = await command(*_LIST, "--all", "--address", f"127.0.0.1:{port}", BACKUPS_TOKEN_FILE=str(token_file))
    assert done.status == 0
    assert (
        done.stderr
        == f"backup-service: warning: token file {token_file} is readable by every user of this machine: chmod 600 protects it\n"
    )


def _two_pages(request: bytes) -> bytes:
    is_first = not pb.ListBackupsRequest.FromString(request).page_token
    return pb.ListBackupsResponse(backups=[pb.Backup(id="x")], next_page_token="2" if is_first else "").SerializeToString()


async def test_a_token_is_read_for_each_call(command: RunCommand, service: _Service, port: int, token_file: Path) -> None:
    """A token that is replaced during a walk is used for the next page. The file takes precedence over the variable."""

    def answer(request: bytes) -> bytes:
        token_file.write_text("second")
        return _two_pages(request)

    service.response = answer
    done = await command(*_LIST, "--all", "--address", f"127.0.0.1:{port}", "--token-file", str(token_file), BACKUPS_TOKEN="third")
    assert (done.status, done.stderr) == (0, "")
    assert service.tokens == [f"Bearer {_TOKEN}", "Bearer second"]


async def test_a_token_from_a_pipe(command: RunCommand, service: _Service, port: int, tmp_path: Path) -> None:
    """A pipe can be read once: its token serves for all pages."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    service.response = _two_pages
    running = asyncio.ensure_future(command(*_LIST, "--all", "--address", f"127.0.0.1:{port}", "--token-file", str(pipe)))
    await asyncio.to_thread(pipe.write_text, _TOKEN)
    assert (await running).status == 0
    assert service.tokens == [f"Bearer {_TOKEN}"] * 2


async def test_no_token_as_an_argument(command: RunCommand) -> None:
    """The token itself is not an option, because every user of a machine can see the arguments of its processes."""
    done = await command(*_LIST, "--token", "hunter2")
    assert done.status == 2
    assert "--token-file" in done.stderr


async def test_ca_files_without_certificates(command: RunCommand, port: int, tmp_path: Path) -> None:
    """A file without certificates, of any size, is named; gRPC would only fail to connect."""
    junk = tmp_path / "ca.pem"
    for content in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        junk.write_bytes(content)
        message = _message(await command("health", "--address", f"127.0.0.1:{port}", "--ca-file", str(junk)))
        assert message == f"--ca-file {junk}: the file has no certificates in PEM"
    message = _message(await command("health", "--address", f"127.0.0.1:{port}", "--ca-file", "/dev/zero"))
    assert message == "--ca-file /dev/zero: the file has more than 1048576 bytes"
    assert "No such file" in _message(await command("health", "--ca-file", str(tmp_path / "none")))


async def test_arguments_that_no_request_can_hold(command: RunCommand, port: int) -> None:
    """A number beyond 64 bits and bytes that are not text are errors of one line."""
    address = ("--address", f"127.0.0.1:{port}")
    for arguments in ((*_LIST, "--page-size", str(2**64)), ("list", "--folder-id", "\udcff"), ("get", "\udcff")):
        assert _message(await command(*arguments, *address)).startswith("the request cannot be encoded: ")


# Responses of a service


async def test_no_service(command: RunCommand) -> None:
    """A service that cannot be reached is one line with the address and the reason."""
    for arguments in (_LIST, ("get", "x"), ("health",)):
        message = _message(await command(*arguments, "--address", "127.0.0.1:1"))
        assert message.startswith("no service answers at 127.0.0.1:1: is it running, and is --address correct? (")
        assert "\n" not in message


async def test_terminal_escapes(command: RunCommand, service: _Service, port: int) -> None:
    """Text of a service cannot move the cursor, and stays a string in JSON."""
    service.response = lambda _: pb.ListBackupsResponse(
        backups=[pb.Backup(id=_CLEAR)], next_page_token=f'", "x": "{_CLEAR}'
    ).SerializeToString()
    address = ("--address", f"127.0.0.1:{port}")
    listed, page = await command(*_LIST, *address), await command(*_LIST, "--json", *address)
    assert "\x1b" not in listed.stdout + listed.stderr
    assert json.loads(page.stdout) == {"backups": [{"id": _CLEAR}], "nextPageToken": f'", "x": "{_CLEAR}'}

    violation = error_details_pb2.BadRequest.FieldViolation(field=_CLEAR, description=_CLEAR)
    details = any_pb2.Any()
    details.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    status = status_pb2.Status(code=3, details=[details]).SerializeToString()
    service.status = (grpc.StatusCode.INVALID_ARGUMENT, _CLEAR, (("grpc-status-details-bin", status),))
    assert _message(await command("get", "x", *address)).split("\n") == [r"INVALID_ARGUMENT: \x1b[2J", r"  \x1b[2J: \x1b[2J"]


_BAD_DETAIL = any_pb2.Any(type_url="type.googleapis.com/google.rpc.BadRequest", value=b"\xff")


@pytest.mark.parametrize("packed", [b"\xff\xff", status_pb2.Status(details=[_BAD_DETAIL]).SerializeToString()])
async def test_error_details_that_are_not_well_formed(command: RunCommand, service: _Service, port: int, packed: bytes) -> None:
    """Error details that are not well-formed are reported as such, after the status."""
    service.status = (grpc.StatusCode.NOT_FOUND, "gone", (("grpc-status-details-bin", packed),))
    message = _message(await command("get", "x", "--address", f"127.0.0.1:{port}"))
    assert message.split("\n") == ["NOT_FOUND: gone", "  (the details of this error are not well-formed)"]


async def _listed(port: int) -> list[pb.ListBackupsResponse]:
    """Return all pages that the client of the commands reads, in this process."""
    endpoint = Endpoint(ServiceAddress("", host="127.0.0.1", port=port))
    return [page async for page in calls.pages(endpoint, _NO_TOKEN, pb.ListBackupsRequest(folder_id="f1"), follow=True)]


async def _got(port: int) -> pb.Backup:
    endpoint = Endpoint(ServiceAddress("", host="127.0.0.1", port=port))
    return await calls.get(endpoint, _NO_TOKEN, pb.GetBackupRequest(backup_id="x"))


@pytest.mark.parametrize("response", [b"\xff", b"\x0a\x03\x0a\x01\xff"])
async def test_responses_that_are_not_messages(service: _Service, port: int, response: bytes) -> None:
    """Bytes that are not a message of the API, or text that is not UTF-8, are one clear error."""
    service.response = lambda _: response
    for call in (_listed, _got):
        with pytest.raises(CallFailed, match="the response is not a message of this API"):
            await call(port)


async def test_a_response_that_is_not_a_message_ends_the_command(command: RunCommand, service: _Service, port: int) -> None:
    """A command prints the error for a response that is not a message, without a traceback."""
    service.response = lambda _: b"\xff"
    assert _message(await command("get", "x", "--address", f"127.0.0.1:{port}")).startswith("the response is not a message of this API")


async def test_responses_that_are_too_large(service: _Service, port: int) -> None:
    """More bytes than any page has, or more backups, are rejected."""
    service.response = lambda _: pb.ListBackupsResponse(next_page_token="x" * (1 << 20)).SerializeToString()
    with pytest.raises(CallFailed, match="^RESOURCE_EXHAUSTED: "):
        await _listed(port)
    service.response = lambda _: pb.ListBackupsResponse(backups=[pb.Backup()] * 1001).SerializeToString()
    with pytest.raises(CallFailed, match="a page of 1001 backups"):
        await _listed(port)


@pytest.mark.parametrize("time", [Timestamp(seconds=2**62), Timestamp(seconds=-(2**62)), Timestamp(nanos=-1), Timestamp(nanos=2**31 - 1)])
@pytest.mark.parametrize("field", ["created_at", "started_at"])
async def test_times_out_of_range(service: _Service, port: int, time: Timestamp, field: str) -> None:
    """A time outside of years 1 to 9999 is rejected, alone and on a page."""
    backup = pb.Backup(**{field: time})  # type: ignore[arg-type]
    service.response = lambda _: pb.ListBackupsResponse(backups=[backup]).SerializeToString()
    with pytest.raises(CallFailed, match="outside of years 1 to 9999"):
        await _listed(port)
    service.response = lambda _: backup.SerializeToString()
    with pytest.raises(CallFailed, match="outside of years 1 to 9999"):
        await _got(port)


async def test_long_ids_do_not_multiply(command: RunCommand, service: _Service, port: int) -> None:
    """One very long id does not pad every other row of the table to its length."""
    page = pb.ListBackupsResponse(backups=[pb.Backup(id="x" * 500_000), *[pb.Backup(id="y")] * 999])
    service.response = lambda _: page.SerializeToString()
    done = await command(*_LIST, "--address", f"127.0.0.1:{port}")
    assert done.status == 0
    assert len(done.stdout) < 800_000


@pytest.mark.parametrize("length", [1, 2, 5, 100])
async def test_repeated_page_tokens(service: _Service, port: int, length: int) -> None:
    """A service that repeats its page tokens after any number of pages does not make --all run forever."""

    def answer(request: bytes) -> bytes:
        number = int(pb.ListBackupsRequest.FromString(request).page_token or "0")
        return pb.ListBackupsResponse(backups=[pb.Backup(id="x")], next_page_token=str(number % length + 1)).SerializeToString()

    service.response = answer
    async with asyncio.timeout(30):
        with pytest.raises(CallFailed, match="repeats its page tokens"):
            await _listed(port)
    assert len(service.tokens) <= 4 * length + 2


async def test_empty_pages_without_end(service: _Service, port: int) -> None:
    """A service that sends new page tokens and no backups does not make --all run forever."""

    def answer(request: bytes) -> bytes:
        number = int(pb.ListBackupsRequest.FromString(request).page_token or "0")
        return pb.ListBackupsResponse(next_page_token=str(number + 1)).SerializeToString()

    service.response = answer
    async with asyncio.timeout(30):
        with pytest.raises(CallFailed, match="1000 empty pages in a row"):
            await _listed(port)
