"""TLS contexts for connections to PostgreSQL, built for every connection, so that replaced files are used."""

import ssl
from pathlib import Path

from service.database_url import Host, Tls
from service.errors import ConnectFailed
from service.postgres.connect.password_file import check_private

_ALPN = ["postgresql"]  # required for direct TLS


def tls_context(tls: Tls, host: Host) -> ssl.SSLContext | None:
    """Return the context for one host; None for plaintext.

    Raises:
        ConnectFailed: a file cannot be used.
    """
    if not host.uses_tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = host.sslmode == "verify-full"
    context.minimum_version = _version(tls.min_version)
    if tls.max_version:
        context.maximum_version = _version(tls.max_version)
    context.set_alpn_protocols(_ALPN)
    _trust_authorities(context, tls, host)
    _load_client_certificate(context, tls)
    return context


def _version(name: str) -> ssl.TLSVersion:
    return ssl.TLSVersion[name.replace(".", "_")]


def _trust_authorities(context: ssl.SSLContext, tls: Tls, host: Host) -> None:
    if tls.root_cert not in (None, "system"):
        _load(context, "sslrootcert", tls.root_cert)  # as in libpq, with it sslmode=require verifies the authority
    elif host.sslmode == "require":
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_default_certs()
    if tls.crl:
        _load(context, "sslcrl", tls.crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def _load(context: ssl.SSLContext, parameter: str, file: str) -> None:
    try:
        context.load_verify_locations(cafile=file)
    except OSError as exc:
        raise ConnectFailed(f"{parameter} {file} cannot be used: {exc.strerror or exc}") from exc


def _load_client_certificate(context: ssl.SSLContext, tls: Tls) -> None:
    if not tls.cert:
        return
    check_private(Path(tls.key or tls.cert))
    try:
        context.load_cert_chain(tls.cert, tls.key, password=lambda: tls.key_password)
    except OSError as exc:
        raise ConnectFailed(f"sslcert {tls.cert} and its key cannot be used: {exc.strerror or exc}") from exc
