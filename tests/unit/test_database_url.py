"""PostgreSQL URLs: hosts, parameters, and the sslmode of each host."""

import pytest

from service.database_url import InvalidDatabaseUrl, parse_database_url

_SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u:p@h/d", [("h", 5432)]),
        ("postgres://u:p%40@a:1,b:2,c/d", [("a", 1), ("b", 2), ("c", 5432)]),
        ("postgresql://h1:,h2/d", [("h1", 5432), ("h2", 5432)]),
        ("postgresql://[::1]:5433,[fe80::1%25eth0]/d", [("::1", 5433), ("fe80::1%eth0", 5432)]),
        ("postgresql://u@/d?host=/tmp,h&port=1,2", [("/tmp", 1), ("h", 2)]),
        ("postgresql://u@/d?host=/tmp,h&port=1", [("/tmp", 1), ("h", 1)]),
        ("postgresql://u@/d?host=%2Ftmp", [("/tmp", 5432)]),
        ("postgresql://%2Ftmp:5433/d", [("/tmp", 5433)]),
        ("postgresql://ignored/d?host=::1", [("::1", 5432)]),
        ("postgresql://h:1/d?port=2", [("h", 2)]),
        ("postgresql:///d", [("/var/run/postgresql", 5432)]),
        ("postgresql://", [("/var/run/postgresql", 5432)]),
        (" postgresql://h/d\n", [("h", 5432)]),
    ],
)
def test_hosts(url: str, hosts: list[tuple[str, int]]) -> None:
    """Hosts and ports are those that libpq would use."""
    assert [(host.name, host.port) for host in parse_database_url(url).hosts] == hosts


def test_credentials() -> None:
    """Values are percent-decoded, a plus sign is not a space, and parameters override the part before the question mark."""
    url = parse_database_url("postgresql://u%40x:p%3A+%25:y@h/d%2F1")
    assert (url.user, url.password, url.database) == ("u@x", "p:+%:y", "d/1")
    url = parse_database_url("postgresql://u:p@h/d?user=u2&password=p%26&dbname=d2&passfile=/f&user=u3")
    assert (url.user, url.password, url.database, url.passfile) == ("u3", "p&", "d2", "/f")
    assert parse_database_url("postgresql://h?user=").user is None


@pytest.mark.parametrize(
    ("url", "modes"),
    [
        ("postgresql://db.example.org,10.0.0.1,[2001:db8::1],localhost.example.org,127.0.0.1.example.org,128.0.0.1/d", {"verify-full"}),
        ("postgresql://localhost,LocalHost,127.0.0.1,127.255.255.255,[::1],%2Ftmp/d", {"disable"}),
        ("postgresql://[::ffff:127.0.0.1]/d", {"verify-full"}),
        ("postgresql://h/d?sslmode=", {"verify-full"}),
        ("postgresql://h,127.0.0.1/d?sslmode=disable", {"disable"}),
        ("postgresql://h,127.0.0.1/d?sslmode=require", {"require"}),
        ("postgresql://h,127.0.0.1/d?sslmode=verify-full", {"verify-full"}),
        ("postgresql://h/d?sslmode=verify-ca&sslrootcert=/f", {"verify-ca"}),
        ("postgresql:///d?host=/tmp&sslmode=verify-full", {"disable"}),
    ],
)
def test_ssl_modes(url: str, modes: set[str]) -> None:
    """Without an explicit sslmode, hosts that are not local are verified; there is no TLS on a Unix socket."""
    assert {host.sslmode for host in parse_database_url(url).hosts} == modes


def test_each_host_has_its_own_sslmode() -> None:
    """A local host in a list does not change the sslmode of the others."""
    assert [host.sslmode for host in parse_database_url("postgresql://127.0.0.1,db,%2Ftmp/d").hosts] == [
        "disable",
        "verify-full",
        "disable",
    ]


def test_warnings() -> None:
    """An explicit disable or require is a warning for each host that is not local, without the password."""
    assert parse_database_url("postgresql://h,localhost/d").warnings == []
    assert parse_database_url("postgresql://127.0.0.1/d?sslmode=disable").warnings == []
    assert parse_database_url("postgresql://u:p@h,g:1,localhost/d?sslmode=disable").warnings == [
        "sslmode=disable sends everything in plaintext to h:5432: use sslmode=verify-full",
        "sslmode=disable sends everything in plaintext to g:1: use sslmode=verify-full",
    ]
    assert parse_database_url("postgresql://h/d?sslmode=require").warnings == [
        "sslmode=require does not verify the identity of h:5432: use sslmode=verify-full"
    ]


def test_a_connection_string_of_a_cloud_console() -> None:
    """The parameters that consoles add are supported, or rejected by name with advice."""
    url = parse_database_url(
        "postgresql://u:p@h/d?sslmode=require&connect_timeout=10&keepalives=1&keepalives_idle=30&keepalives_interval=5&keepalives_count=3"
        "&tcp_user_timeout=9000&application_name=a&options=-c%20statement_timeout%3D5s&gssencmode=disable&target_session_attrs=read-write"
    )
    assert (url.connect_timeout_s, url.target_session_attrs) == (10, "read-write")
    assert url.keepalives == (True, 30, 5, 3, 9000)
    assert url.server_settings == {"application_name": "a", "options": "-c statement_timeout=5s"}
    with pytest.raises(InvalidDatabaseUrl, match="the parameter channel_binding is only supported with the value .*: remove it; sslmode="):
        parse_database_url("postgresql://h/d?channel_binding=require")


# Of https://www.postgresql.org/docs/18/libpq-connect.html
_LIBPQ_18 = [
    "host", "hostaddr", "port", "dbname", "user", "password", "passfile", "require_auth", "channel_binding", "connect_timeout",
    "client_encoding", "options", "application_name", "fallback_application_name", "keepalives", "keepalives_idle",
    "keepalives_interval", "keepalives_count", "tcp_user_timeout", "replication", "gssencmode", "sslmode", "sslnegotiation",
    "sslcompression", "sslcert", "sslkey", "sslkeylogfile", "sslpassword", "sslcertmode", "sslrootcert", "sslcrl", "sslcrldir",
    "sslsni", "requirepeer", "ssl_min_protocol_version", "ssl_max_protocol_version", "min_protocol_version", "max_protocol_version",
    "krbsrvname", "gsslib", "gssdelegation", "scram_client_key", "scram_server_key", "service", "target_session_attrs",
    "load_balance_hosts", "oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope",
]  # fmt: skip


@pytest.mark.parametrize("name", _LIBPQ_18)
def test_every_parameter_of_libpq(name: str) -> None:
    """Each parameter of libpq 18 is supported, or rejected by name."""
    values = ["/f", "1", "verify-full", "any", "direct", "TLSv1.3", "3.0", "disable", "allow", "0", "utf8"]
    errors = []
    for value in values:
        try:
            parse_database_url(f"postgresql://u@h/d?{name}={value}{'&sslcert=/f' if name == 'sslkey' else ''}")
        except InvalidDatabaseUrl as exc:
            errors.append(str(exc))
    assert all(name in error or (name, error.split()[3]) in {("host", "host"), ("port", "port")} for error in errors), errors


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("sslmode=prefer", "sslmode must not be allow or prefer"),
        ("sslmode=allow", "sslmode must not be allow or prefer"),
        (f"sslmode={_SECRET}", "sslmode must be disable, require, verify-ca or verify-full"),
        ("sslmode=verify-ca", "needs sslrootcert"),
        ("sslmode=verify-ca&sslrootcert=system", "needs sslrootcert"),
        ("sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
        ("sslmode=disable&sslnegotiation=direct", "sslnegotiation=direct needs"),
        ("sslkey=/f", "sslkey needs sslcert"),
        ("service=s", "the parameter service is not supported: write the parameters into the URL"),
        (f"hostaddr={_SECRET}", "the parameter hostaddr is not supported"),
        (f"password=x&{_SECRET}", "parameter 2 after the question mark is not of the form name=value"),
        (f"password=x&{_SECRET}=1", "parameter 2 after the question mark is not one of libpq's"),
        (f"password=x={_SECRET}", "parameter 1 after the question mark is not of the form"),
        (f"port={_SECRET}", "port"),
        ("port=1,2", "one for each host"),
        (f"connect_timeout={_SECRET}", "connect_timeout must be a whole number"),
        ("connect_timeout=-1", "connect_timeout must be a whole number"),
        (f"keepalives={_SECRET}", "keepalives must be 0 or 1"),
        (f"target_session_attrs={_SECRET}", "target_session_attrs must be any, primary"),
        (f"channel_binding={_SECRET}", "the parameter channel_binding is only supported"),
        ("password=%zz", "percent sign"),
        ("password=%00", "percent sign"),
        ("password=%ff", "not UTF-8"),
        ("host=a,", "a host that is not a name"),
        ("host=@abstract", "a host that is not a name"),
        ("host=a:1", "not a valid IPv6 address"),
    ],
)
def test_rejected_parameters(query: str, message: str) -> None:
    """A parameter that cannot be used is named, and its value is not shown."""
    with pytest.raises(InvalidDatabaseUrl) as caught:
        parse_database_url(f"postgresql://u:{_SECRET}@h/d?{query}")
    assert message in str(caught.value)
    assert _SECRET not in str(caught.value)


def test_no_secret_in_a_repr() -> None:
    """The repr of a parsed URL contains neither the password nor that of the key."""
    text = repr(parse_database_url(f"postgresql://u:{_SECRET}@h/d?sslpassword={_SECRET}"))
    assert _SECRET not in text


@pytest.mark.parametrize("host", ["[::1", "[::1]x", "a[::1]", f"[{_SECRET}"])
def test_hosts_with_brackets(host: str) -> None:
    """Square brackets that do not enclose a whole host are rejected, without the host in the message."""
    with pytest.raises(InvalidDatabaseUrl) as caught:
        parse_database_url(f"postgresql://u@{host}/d")
    assert "contains a host that is not a name, an IPv4 address or an IPv6 address in square brackets" in str(caught.value)
    assert _SECRET not in str(caught.value)
