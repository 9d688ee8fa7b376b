"""PostgreSQL connection URLs: the only parser of `BACKUPS_DATABASE_URL`.

The syntax is that of libpq (https://www.postgresql.org/docs/18/libpq-connect.html). Every parameter of libpq 18 is either supported or
rejected by name. The variables of libpq (PGHOST, PGPASSWORD, PGSSLMODE, ...) and its service file are ignored.

Error messages contain no part of the URL except the names of libpq's parameters, because any other part may be a misplaced password.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

DEFAULT_PORT = 5432
DEFAULT_SOCKET_FOLDER = "/var/run/postgresql"

SESSION_ATTRIBUTES = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")

_URL = re.compile(
    r"(?:postgresql|postgres)://"
    r"(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?P<hosts>[^@/?#]*)"
    r"(?:/(?P<database>[^@/?#]*))?"
    r"(?:\?(?P<query>[^#]*))?"
)
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>.*))?")
_HOST_NAME = re.compile(r"[\w.-]+")
_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})|%00")

_SSL_MODES = ("disable", "require", "verify-ca", "verify-full")
_TLS_VERSIONS = ("TLSv1.2", "TLSv1.3")
_MAX_SECONDS = 7 * 24 * 3600

# Values that change nothing here. Any other value of these parameters is rejected.
_ACCEPTED_VALUES: Mapping[str, tuple[str, ...]] = {
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("utf8", "utf-8", "unicode", "auto"),
    "gssencmode": ("disable", "prefer"),
    "gssdelegation": ("0",),
    "load_balance_hosts": ("disable",),
    "max_protocol_version": ("3.0", "3.2", "latest"),
    "min_protocol_version": ("3.0",),
    "replication": ("false", "off", "no", "0"),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
_ADVICE = {
    "channel_binding": "remove it; sslmode=verify-full authenticates the server",
    "gssencmode": "remove it, and use sslmode=verify-full",
}
_REJECTED: Mapping[str, str] = {
    "hostaddr": "put the address into host",
    "gsslib": "use a password or a client certificate",
    "krbsrvname": "use a password or a client certificate",
    "oauth_client_id": "use a password or a client certificate",
    "oauth_client_secret": "use a password or a client certificate",
    "oauth_issuer": "use a password or a client certificate",
    "oauth_scope": "use a password or a client certificate",
    "require_auth": "remove it; without TLS, only SCRAM is answered",
    "requirepeer": "use TCP with sslmode=verify-full",
    "requiressl": "use sslmode",
    "scram_client_key": "use password or passfile",
    "scram_server_key": "use password or passfile",
    "service": "write the parameters into the URL",
    "servicefile": "write the parameters into the URL",
    "sslcrldir": "use sslcrl",
    "sslkeylogfile": "remove it",
}
_SUPPORTED = (
    *("host", "port", "dbname", "user", "password", "passfile", "connect_timeout", "target_session_attrs"),
    *("application_name", "fallback_application_name", "options"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    *("sslmode", "sslnegotiation", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version"),
)


class InvalidDatabaseUrl(ValueError):
    """The URL cannot be used. The message contains no value from the URL, because a value may be a password."""


class Host(NamedTuple):
    """One server of the URL, and the `sslmode` that applies to it."""

    name: str
    """Host name, IP address without brackets, or the folder of a Unix socket."""
    port: int
    sslmode: str

    @property
    def is_socket(self) -> bool:
        return self.name.startswith("/")

    @property
    def uses_tls(self) -> bool:
        return self.sslmode != "disable"

    @property
    def is_local(self) -> bool:
        """Return True if the host is a Unix socket, 127.0.0.0/8, ::1 or `localhost`."""
        return _is_local(self.name)

    def __str__(self) -> str:
        if self.is_socket:
            return f"{self.name}/.s.PGSQL.{self.port}"
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


class Keepalives(NamedTuple):
    """TCP keepalive options; None leaves the system's value."""

    enabled: bool
    idle_s: int | None
    interval_s: int | None
    probes: int | None
    user_timeout_ms: int | None


class Tls(NamedTuple):
    """TLS parameters of all hosts: files and protocol versions."""

    root_cert: str | None
    """None and `system` are the system's authorities."""
    cert: str | None
    key: str | None
    key_password: str
    crl: str | None
    min_version: str
    max_version: str | None
    direct: bool
    """True if TLS starts without PostgreSQL's own negotiation."""


@dataclass(frozen=True)
class DatabaseUrl:
    """A parsed URL. Its repr contains no password."""

    hosts: tuple[Host, ...]
    user: str | None
    database: str | None
    password: str | None = field(repr=False)
    passfile: str | None
    target_session_attrs: str
    connect_timeout_s: float | None
    server_settings: Mapping[str, str]
    keepalives: Keepalives
    tls: Tls = field(repr=False)

    @property
    def warnings(self) -> list[str]:
        """Describe hosts that are reached with less protection than `sslmode=verify-full`."""
        return [
            f"sslmode={host.sslmode} {_WEAKNESSES[host.sslmode]} {host}: use sslmode=verify-full"
            for host in self.hosts
            if host.sslmode in _WEAKNESSES and not host.is_local
        ]


_WEAKNESSES = {"disable": "sends everything in plaintext to", "require": "does not verify the identity of"}


def parse_database_url(text: str) -> DatabaseUrl:
    """Parse a URL.

    Raises:
        InvalidDatabaseUrl: a part is malformed, or a parameter is not supported.
    """
    matched = _URL.fullmatch(text.strip())
    if not matched or not matched[0].isascii() or not matched[0].isprintable() or " " in matched[0]:
        raise InvalidDatabaseUrl("must be postgresql://user:password@host:port/database, with special characters percent-encoded")
    parameters = {name: _decoded(matched[group]) for name, group in _AUTHORITY.items() if matched[group]}
    parameters |= {name: value for name, value in _query_parameters(matched["query"] or "") if value}
    _check_names(parameters)
    hosts = _hosts(matched["hosts"], parameters)
    return DatabaseUrl(
        hosts=hosts,
        user=parameters.get("user"),
        database=parameters.get("dbname"),
        password=parameters.get("password"),
        passfile=parameters.get("passfile"),
        target_session_attrs=_one_of(parameters, "target_session_attrs", SESSION_ATTRIBUTES, "any"),
        connect_timeout_s=_number(parameters, "connect_timeout", _MAX_SECONDS) or None,  # 0 is libpq's "not set"
        server_settings={name: parameters[name] for name in ("application_name", "options") if name in parameters},
        keepalives=_keepalives(parameters),
        tls=_tls(parameters, hosts),
    )


_AUTHORITY = {"user": "user", "password": "password", "dbname": "database"}


def _decoded(text: str) -> str:
    if _ESCAPE.search(text):
        raise InvalidDatabaseUrl("contains a percent sign that is not followed by two hexadecimal digits (%25 is the sign itself)")
    try:
        return unquote(text, errors="strict")  # not parse_qs: in libpq's URLs a plus sign is not a space
    except UnicodeDecodeError:
        raise InvalidDatabaseUrl("contains percent-encoded bytes that are not UTF-8") from None


def _query_parameters(query: str) -> Iterator[tuple[str, str]]:
    known = {*_SUPPORTED, *_ACCEPTED_VALUES, *_REJECTED}
    for number, pair in enumerate(query.split("&") if query else (), start=1):
        name, equals, value = pair.partition("=")
        name = _decoded(name)
        if not equals or "=" in value:
            raise InvalidDatabaseUrl(f"parameter {number} after the question mark is not of the form name=value")
        if name not in known:
            raise InvalidDatabaseUrl(
                f"parameter {number} after the question mark is not one of libpq's (its name is not quoted: it may be part of a password)"
            )
        yield name, _decoded(value)


def _check_names(parameters: Mapping[str, str]) -> None:
    for name, value in parameters.items():
        if name in _REJECTED:
            raise InvalidDatabaseUrl(f"the parameter {name} is not supported: {_REJECTED[name]}")
        accepted = _ACCEPTED_VALUES.get(name)
        if accepted and value.lower() not in accepted:
            advice = _ADVICE.get(name, "remove it")
            raise InvalidDatabaseUrl(f"the parameter {name} is only supported with the value {' or '.join(accepted)}: {advice}")


def _hosts(authority: str, parameters: Mapping[str, str]) -> tuple[Host, ...]:
    if "host" in parameters:
        found = [(name, "") for name in parameters["host"].split(",")]
    else:
        found = [_host_and_port(each) for each in authority.split(",")] if authority else [(DEFAULT_SOCKET_FOLDER, "")]
    ports = [port for _, port in found]
    if "port" in parameters:
        ports = parameters["port"].split(",")
        if len(ports) == 1:
            ports *= len(found)
    if len(ports) != len(found):
        raise InvalidDatabaseUrl("the parameter port must contain one port, or one for each host")
    hosts = [(_checked_name(name), _port(port)) for (name, _), port in zip(found, ports, strict=True)]
    return tuple(Host(name, port, _ssl_mode(name, parameters)) for name, port in hosts)


def _host_and_port(text: str) -> tuple[str, str]:
    matched = _HOST_AND_PORT.fullmatch(text)
    if not matched:
        raise InvalidDatabaseUrl("contains a host that is not a name, an IPv4 address or an IPv6 address in square brackets")
    host = _decoded(matched["host"])
    if host.startswith("["):
        host = host[1:-1]
        _check_ipv6(host)
    return host, _decoded(matched["port"] or "")


def _check_ipv6(text: str) -> None:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        raise InvalidDatabaseUrl("contains a host that is not a valid IPv6 address") from None


def _checked_name(name: str) -> str:
    if name.startswith("/"):
        return name
    if ":" in name:
        _check_ipv6(name)
        return name
    try:
        name.encode("idna")
    except UnicodeError:
        name = ""
    if not _HOST_NAME.fullmatch(name):
        raise InvalidDatabaseUrl("contains a host that is not a name, an address or the absolute path of a socket's folder")
    return name


def _port(text: str) -> int:
    if not text:
        return DEFAULT_PORT
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 2**16):
        raise InvalidDatabaseUrl("contains a port that is not a number from 1 to 65535")
    return int(text)


def _ssl_mode(host: str, parameters: Mapping[str, str]) -> str:
    """Return the mode of one host: an explicit one, else `verify-full` if the host is not local."""
    if parameters.get("sslmode") in ("allow", "prefer"):
        raise InvalidDatabaseUrl("sslmode must not be allow or prefer, which fall back to plaintext: use verify-full (the default)")
    explicit = _one_of(parameters, "sslmode", _SSL_MODES, "")
    if host.startswith("/"):
        return "disable"  # as in libpq, there is no TLS on a Unix socket
    return explicit or ("disable" if _is_local(host) else "verify-full")


def _is_local(host: str) -> bool:
    if host.startswith("/") or host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address in _LOOPBACK if address.version == 4 else address == ipaddress.IPv6Address("::1")


_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")


def _tls(parameters: Mapping[str, str], hosts: tuple[Host, ...]) -> Tls:
    root_cert, mode = parameters.get("sslrootcert"), parameters.get("sslmode")
    if root_cert in (None, "system") and mode == "verify-ca":
        raise InvalidDatabaseUrl(
            "sslmode=verify-ca needs sslrootcert=FILE, because the system's authorities certify any host. Or use verify-full"
        )
    if root_cert == "system" and mode == "require":
        raise InvalidDatabaseUrl("sslrootcert=system needs sslmode=verify-full")
    if parameters.get("sslkey") and not parameters.get("sslcert"):
        raise InvalidDatabaseUrl("sslkey needs sslcert")
    direct = _one_of(parameters, "sslnegotiation", ("postgres", "direct"), "postgres") == "direct"
    if direct and any(host.sslmode == "disable" and not host.is_socket for host in hosts):
        raise InvalidDatabaseUrl("sslnegotiation=direct needs sslmode=verify-full, verify-ca or require")
    return Tls(
        root_cert=root_cert,
        cert=parameters.get("sslcert"),
        key=parameters.get("sslkey"),
        key_password=parameters.get("sslpassword", ""),
        crl=parameters.get("sslcrl"),
        min_version=_one_of(parameters, "ssl_min_protocol_version", _TLS_VERSIONS, "TLSv1.2"),
        max_version=_one_of(parameters, "ssl_max_protocol_version", _TLS_VERSIONS, "") or None,
        direct=direct,
    )


def _keepalives(parameters: Mapping[str, str]) -> Keepalives:
    return Keepalives(
        enabled=_one_of(parameters, "keepalives", ("0", "1"), "1") == "1",
        idle_s=_number(parameters, "keepalives_idle", 2**15 - 1) or None,
        interval_s=_number(parameters, "keepalives_interval", 2**15 - 1) or None,
        probes=_number(parameters, "keepalives_count", 127) or None,
        user_timeout_ms=_number(parameters, "tcp_user_timeout", 2**31 - 1) or None,
    )


def _one_of(parameters: Mapping[str, str], name: str, values: tuple[str, ...], default: str) -> str:
    value = parameters.get(name, default)
    if value != default and value not in values:
        raise InvalidDatabaseUrl(f"{name} must be {', '.join(values[:-1])} or {values[-1]}")
    return value


def _number(parameters: Mapping[str, str], name: str, maximum: int) -> int:
    text = parameters.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= maximum):
        raise InvalidDatabaseUrl(f"{name} must be a whole number from 0 to {maximum}")
    return int(text)
