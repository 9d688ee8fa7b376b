"""TLS: reloaded certificates, client certificates, and the plaintext listener for health checks."""

import asyncio
import codecs
import math
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service import pb
from service.address import Address
from service.errors import InvalidSettings, PortTaken
from tests.support.certificates import Authority, Files, Pair, certificate_name
from tests.support.commands import RunCommand
from tests.support.eventually import eventually
from tests.support.failures import failure
from tests.support.metrics import scrape, value_of
from tests.support.server import StartServer
from tests.support.tokens import AUDIENCE, ISSUER, Issuer

# DER: the identifier of the extension, and if it is critical.
_BASIC_CONSTRAINTS, _TRUE, _FALSE = bytes.fromhex("0603551d13"), bytes.fromhex("0101ff"), bytes.fromhex("010100")

_TRUSTED = (b" CERTIFICATE-----", b" TRUSTED CERTIFICATE-----")
_MARKED = (b"-----BEGIN", codecs.BOM_UTF8 + b"-----BEGIN")


@pytest.fixture(name="authority", scope="module")
def _authority() -> Authority:
    return Authority()


@pytest.fixture(name="files")
def _files(tmp_path: Path, authority: Authority) -> Files:
    files = Files(tmp_path)
    files.write(authority.pair("first"))
    return files


def _channel(address: Address, authority: Authority, client: Pair | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(authority.cert, client.key if client else None, client.cert if client else None)
    return grpc.aio.secure_channel(f"localhost:{address.port}", credentials)


async def _list(channel: grpc.aio.Channel) -> pb.ListBackupsResponse:
    return await pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(folder_id="f"), timeout=10)


async def test_calls_over_tls(start_server: StartServer, authority: Authority, files: Files, command: RunCommand, tmp_path: Path) -> None:
    """Calls over TLS are answered, including those of the command, and plaintext is rejected."""
    async with start_server(**files.settings) as server:
        async with _channel(server.address, authority) as channel:
            await _list(channel)
        ca_file = tmp_path / "ca.crt"
        ca_file.write_bytes(authority.cert)
        address = f"localhost:{server.address.port}"
        done = await command("list", "--folder-id", "f", "--address", address, "--tls", "--ca-file", str(ca_file))
        assert (done.status, done.stderr) == (0, "No backups in folder f.\n")
        assert (await command("list", "--folder-id", "f", "--address", address)).status == 1


async def test_a_new_pair(start_server: StartServer, authority: Authority, files: Files) -> None:
    """A new certificate and key are used without a restart, and open connections stay open."""
    async with start_server(**files.settings) as server, _channel(server.address, authority) as channel:
        await _list(channel)
        assert await certificate_name(*server.address, authority) == "first"
        files.write(authority.pair("second"))
        assert await certificate_name(*server.address, authority) == "second"
        await _list(channel)


async def test_one_file_before_the_other(start_server: StartServer, authority: Authority, files: Files) -> None:
    """While the certificate is new and the key is not, or a file is half written or missing, the previous pair stays in use."""
    second = authority.pair("second")
    async with start_server(**files.settings) as server:
        for cert in (second.cert, second.cert[:100], b"", None):
            if cert is None:
                files.cert.unlink()
            else:
                files.cert.write_bytes(cert)
            assert await certificate_name(*server.address, authority) == "first"
        files.cert.write_bytes(second.cert)
        assert await certificate_name(*server.address, authority) == "first"
        files.key.write_bytes(second.key)
        assert await certificate_name(*server.address, authority) == "second"


async def test_replaced_link(start_server: StartServer, authority: Authority, tmp_path: Path) -> None:
    """The pair is reloaded when a symbolic link in its path is replaced, as by Kubernetes for both files together."""
    for version in ("first", "second"):
        (tmp_path / version).mkdir()
        Files(tmp_path / version).write(authority.pair(version))
    current = tmp_path / "current"
    current.symlink_to("first")
    async with start_server(**Files(current).settings) as server:
        assert await certificate_name(*server.address, authority) == "first"
        (tmp_path / "new").symlink_to("second")
        (tmp_path / "new").replace(current)
        assert await certificate_name(*server.address, authority) == "second"


async def test_client_certificates(start_server: StartServer, authority: Authority, files: Files, tmp_path: Path) -> None:
    """With an authority for clients, whose file may have comments, only clients with a certificate of it are accepted."""
    clients = Authority()
    (tmp_path / "clients.crt").write_bytes("# Zürich\n".encode() + clients.cert)
    async with start_server(**files.settings, tls_client_ca=str(tmp_path / "clients.crt")) as server:
        async with _channel(server.address, authority, clients.pair("client")) as channel:
            await _list(channel)
        for pair in (None, authority.pair("other")):
            async with _channel(server.address, authority, pair) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await _list(channel)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("names", "accepted"),
    [
        (["envoy.example.org"], True),
        (["ENVOY.example.org"], True),
        (["spiffe://example.org/envoy"], True),
        (["other.example.org", "spiffe://example.org/envoy"], True),
        (["other.example.org", "spiffe://example.org/ENVOY"], False),
        (["sub.envoy.example.org", "*.example.org"], False),
        (["127.0.0.1"], False),
    ],
)
async def test_names_of_client_certificates(
    start_server: StartServer, authority: Authority, files: Files, tmp_path: Path, names: list[str], *, accepted: bool
) -> None:
    """With accepted names, a certificate of the right authority without any of them is UNAUTHENTICATED; its health checks are answered."""
    (tmp_path / "clients.crt").write_bytes(authority.cert)
    settings = {"tls_client_ca": str(tmp_path / "clients.crt"), "tls_client_names": "envoy.example.org,spiffe://example.org/envoy"}
    # The common name of the certificate does not count.
    client = authority.pair("envoy.example.org", alternative_names=names)
    async with start_server(**files.settings, **settings) as server, _channel(server.address, authority, client) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=10)).status
        if accepted:
            await _list(channel)
            return
        error = await failure(pb.BackupServiceStub(channel).List(pb.ListBackupsRequest(), timeout=10))
        assert (error.code, error.reason, error.violations) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", [])


async def test_names_and_tokens(
    start_server: StartServer, authority: Authority, files: Files, issuer: Issuer, jwks: Path, tmp_path: Path
) -> None:
    """A valid token does not replace the name of the certificate, and the name does not replace the token."""
    (tmp_path / "clients.crt").write_bytes(authority.cert)
    settings = {
        **files.settings,
        "tls_client_ca": str(tmp_path / "clients.crt"),
        "tls_client_names": "envoy.example.org",
        "auth": "jwt",
        "jwks": str(jwks),
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
    }
    named, other = (authority.pair("c", alternative_names=[name]) for name in ("envoy.example.org", "other.example.org"))
    metadata = [("authorization", f"Bearer {issuer.token('k1')}")]
    request = pb.ListBackupsRequest(folder_id="f1")
    async with start_server(**settings) as server:
        async with _channel(server.address, authority, named) as channel:
            stub = pb.BackupServiceStub(channel)
            await eventually(lambda: stub.List(request, metadata=metadata).code(), grpc.StatusCode.OK)
            assert await stub.List(request).code() is grpc.StatusCode.UNAUTHENTICATED
        async with _channel(server.address, authority, other) as channel:
            assert await pb.BackupServiceStub(channel).List(request, metadata=metadata).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_health_in_plaintext(start_server: StartServer, authority: Authority, files: Files) -> None:
    """The plaintext listener for probes without TLS serves health checks only."""
    async with start_server(**files.settings, health_listen="127.0.0.1:0") as server:
        async with _channel(server.address, authority) as channel:
            await _list(channel)  # must not enable List on the other listener
        async with grpc.aio.insecure_channel(str(server.health_address)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _list(channel)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("spoil", ["cert", "key", "other key", "encrypted key", "authority first"])
async def test_files_that_cannot_be_used(start_server: StartServer, authority: Authority, files: Files, spoil: str) -> None:
    """At the start, files that are missing or do not belong together are one clear error that does not contain their content."""
    problem = "the server's certificate must be the first of its file, and the key must have no password"
    match spoil:
        case "cert":
            files.cert.unlink()
            problem = "tls.crt: No such file or directory"
        case "key":
            files.key.write_bytes(b"hunter2")
        case "other key":
            files.key.write_bytes(authority.pair("x").key)
        case "encrypted key":
            key = load_pem_private_key(files.key.read_bytes(), None)
            files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2")))
        case _:
            files.cert.write_bytes(authority.cert + files.cert.read_bytes())
    with pytest.raises(InvalidSettings, match=f"BACKUPS_TLS_CERT, BACKUPS_TLS_KEY: .*{problem}") as caught:
        async with start_server(**files.settings):
            pass
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "replaced", "problem"),
    [
        ("tls.crt", _TRUSTED, "contains a TRUSTED CERTIFICATE"),
        ("clients.crt", _TRUSTED, "contains a TRUSTED CERTIFICATE"),
        ("tls.crt", _MARKED, "begins with a byte order mark"),
        ("tls.key", _MARKED, "begins with a byte order mark"),
        ("clients.crt", _MARKED, "begins with a byte order mark"),
    ],
)
async def test_pem_that_grpc_does_not_support(
    start_server: StartServer,
    authority: Authority,
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    replaced: tuple[bytes, bytes],
    problem: str,
) -> None:
    """Forms of PEM that OpenSSL reads and gRPC does not are a clear error at the start; later, the previous files remain in use."""
    file = tmp_path / name
    (tmp_path / "clients.crt").write_bytes(authority.cert)
    settings = files.settings | {"tls_client_ca": str(tmp_path / "clients.crt")}
    good = file.read_bytes()
    file.write_bytes(good.replace(*replaced))
    with pytest.raises(InvalidSettings, match=f"{name}: {problem}"):
        async with start_server(**settings):
            pass
    file.write_bytes(good)
    async with start_server(**settings) as server:
        file.write_bytes(good.replace(*replaced))
        assert await certificate_name(*server.address, authority) == "first"
    assert f"{name}: {problem}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["brainpoolP256r1", "ed448"])
async def test_keys_that_grpc_does_not_support(
    start_server: StartServer, authority: Authority, files: Files, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A key that OpenSSL can use and gRPC cannot is a clear error at the start; later, the previous pair remains in use."""
    good = Pair(files.cert.read_bytes(), files.key.read_bytes())
    key = Ed448PrivateKey.generate() if kind == "ed448" else ec.generate_private_key(ec.BrainpoolP256R1())
    unsupported = authority.pair("second", key=key)
    files.write(unsupported)
    with pytest.raises(InvalidSettings, match="tls.crt: gRPC cannot use its key"):
        async with start_server(**files.settings):
            pass
    files.write(good)
    async with start_server(**files.settings) as server:
        files.write(unsupported)
        assert await certificate_name(*server.address, authority) == "first"
    assert "tls.crt: gRPC cannot use its key" in capsys.readouterr().err


async def test_certificate_that_only_openssl_accepts(start_server: StartServer, authority: Authority, files: Files) -> None:
    """A certificate that gRPC rejects for another reason is an error about the certificate, and a port in use is one about the port."""
    async with start_server(**files.settings) as server:
        with pytest.raises(PortTaken):
            async with start_server(**files.settings, listen=str(server.address)):
                pass
    files.write(authority.own_pair)  # its key usage does not allow handshakes
    with pytest.raises(InvalidSettings, match="gRPC cannot use the certificate or the key"):
        async with start_server(**files.settings):
            pass


@pytest.mark.parametrize("spoilt", [b"", b"hunter2", b"\xff"])
async def test_an_authority_that_cannot_be_used(
    start_server: StartServer, authority: Authority, files: Files, tmp_path: Path, spoilt: bytes
) -> None:
    """A client CA file without a certificate is a clear error at the start; later, the previous authorities remain in use."""
    clients, client_ca = Authority(), tmp_path / "clients.crt"
    client_ca.write_bytes(spoilt)
    settings = files.settings | {"tls_client_ca": str(client_ca)}
    with pytest.raises(InvalidSettings, match="BACKUPS_TLS_CLIENT_CA: .*clients.crt: not a PEM file with certificates"):
        async with start_server(**settings):
            pass
    client_ca.write_bytes(clients.cert)
    async with start_server(**settings) as server:
        client_ca.write_bytes(spoilt)
        for _ in range(2):
            async with _channel(server.address, authority, clients.pair("client")) as channel:
                await _list(channel)


async def test_certificate_without_a_known_expiry(start_server: StartServer, authority: Authority, files: Files) -> None:
    """A certificate that gRPC accepts, and whose expiry cannot be read, is used; the metric of its expiry is NaN."""
    pair = authority.pair("first")
    # TLS libraries accept an extension that is explicitly not critical. It is not DER, so that cryptography rejects it.
    der = ssl.PEM_cert_to_DER_cert(pair.cert.decode()).replace(_BASIC_CONSTRAINTS + _TRUE, _BASIC_CONSTRAINTS + _FALSE)
    files.write(pair._replace(cert=ssl.DER_cert_to_PEM_cert(der).encode()))
    async with start_server(**files.settings, metrics_listen="127.0.0.1:0") as server:
        assert ssl.PEM_cert_to_DER_cert(await asyncio.to_thread(ssl.get_server_certificate, server.address)) == der
        assert math.isnan(value_of(await scrape(server), "backups_tls_certificate_expiry_timestamp_seconds"))
