"""Settings: defaults, accepted and rejected values, and messages without secrets."""

from datetime import timedelta

import pytest

from service.address import Address
from service.errors import InvalidSettings
from service.page_token import DEFAULT_KEY
from service.settings import Settings

_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def test_defaults() -> None:
    """Every setting has a default except the database URL, which only some commands require."""
    settings = Settings.read()
    assert settings.listen == Address("127.0.0.1", 50051)
    assert settings.page_token_key.get_secret_value() == DEFAULT_KEY
    with pytest.raises(InvalidSettings, match="BACKUPS_DATABASE_URL is not set"):
        settings.require_database_url()


def test_all_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting is read from its variable."""
    for name, value in {
        "DATABASE_URL": "postgresql://u:p%40ss@h1:5432,h2/db?target_session_attrs=any",
        "LISTEN": "[::1]:0",
        "PAGE_TOKEN_KEY": _KEY,
        "PAGE_TOKEN_KEYS_ACCEPTED": f"default, {_KEY}",
        "POOL_SIZE": "3",
        "REQUEST_TIMEOUT": "1.5",
        "REFLECTION": "true",
        "LOG_FORMAT": "console",
    }.items():
        monkeypatch.setenv(f"BACKUPS_{name}", value)

    settings = Settings.read()

    assert settings.require_database_url() == "postgresql://u:p%40ss@h1:5432,h2/db?target_session_attrs=any"
    assert settings.listen == Address("::1", 0)
    assert str(settings.listen) == "[::1]:0"
    assert settings.page_token_key.get_secret_value() == bytes(range(32))
    assert [key.get_secret_value() for key in settings.page_token_keys_accepted] == [DEFAULT_KEY, bytes(range(32))]
    assert settings.pool_size == 3
    assert settings.request_timeout == timedelta(seconds=1.5)
    assert settings.reflection is True
    assert settings.log_format == "console"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("DATABASE_URL", ["hunter2", "mysql://u:hunter2@h/d", "postgresql://u:hunter2/x@h/d", "postgresql://u:p@h:hunter2/d"]),
        ("DATABASE_URL", ["postgresql://u:x@hunter2@h/d", "postgresql://u:x@hunter2:y@h/d", "postgresql://u:hunter2\uff1ax@h/d"]),
        ("DATABASE_URL", ["postgresql://u:1?hunter2@h/d", "postgresql://h/d?password=x&hunter2", "postgresql://h/d?port=hunter2"]),
        ("DATABASE_URL", ["postgresql://u:1/hunter2@h/d", "postgresql://u:12#hunter2@h/d"]),
        ("DATABASE_URL", ["postgresql://h/d?target_session_attrs=hunter2", "postgresql://h:65536/d", "postgresql://h,/d"]),
        ("DATABASE_URL", ["postgresql://.../d", "postgresql://%ff/d", f"postgresql://{'h' * 64}/d"]),
        ("SERVICE_ROLE", ["Backups", 'a"b', "a'b", "a b", "hunter2;", "r" * 64, "1a", "роль"]),
        ("LISTEN", ["50051", "localhost", "h:", ":1", "h:-1", "h:65536", "h:x", "h:\u0661"]),
        (
            "PUBLIC_ADDRESS",
            ["h", "h:0", "0.0.0.0:443", "[::]:443", "https://h:443", "u:hunter2@h:443", "h x:443", "h/x:443", "-h:443", "é:443"],
        ),
        (
            "JWKS",
            [
                "http://identity.example.org/jwks.json",
                "http://192.0.2.1/",
                "http://localhost.example.org/",
                "http://127.0.0.1@h/",
                "https://",
            ],
        ),
        (
            "JWKS",
            [
                "https://u:hunter2@h/jwks",
                "ftp://h/jwks",
                "file:///etc/jwks",
                "https://h/a b",
                "HTTP://h/",
                "http://0.0.0.0/",
                "https://h\\@x/",
            ],
        ),
        ("JWT_MAX_LIFETIME", ["0", "-1", "inf", "604801"]),
        ("TRUSTED_PROXIES", ["hunter2", "127.0.0.1,hunter2", "10.0.0.1/8", "10.0.0.0/33"]),
        ("TLS_CLIENT_NAMES", [",", "a,,b", "a b", "spiffe://x y", "é"]),
        ("PAGE_TOKEN_KEY", ["hunter2", _KEY[:-4], _KEY + "hunter2", "Default"]),
        ("PAGE_TOKEN_KEYS_ACCEPTED", ["hunter2", f"{_KEY},hunter2"]),
        ("POOL_SIZE", ["0", "-1", "1001", "many", "1.5", "9" * 30]),
        ("ADMISSION_LIMIT", ["0", "1000001"]),
        ("REQUEST_TIMEOUT", ["0", "-1", "nan", "inf", "604801", "soon", "PT1S"]),
        ("REFLECTION", ["maybe"]),
        ("LOG_FORMAT", ["xml"]),
        ("LOG_LEVEL", ["loud"]),
    ],
)
def test_bad_values(monkeypatch: pytest.MonkeyPatch, name: str, values: list[str]) -> None:
    """An invalid value is reported in one line that names the variable and does not quote the value."""
    for value in values:
        monkeypatch.setenv(f"BACKUPS_{name}", value)
        with pytest.raises(InvalidSettings) as caught:
            Settings.read()
        message = str(caught.value)
        assert message.startswith(f"BACKUPS_{name}: ")
        assert "\n" not in message
        assert "hunter2" not in message
        assert caught.value.__cause__ is None  # pydantic's error holds the values


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_empty_values(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An empty variable counts as unset."""
    expected = Settings.read()
    monkeypatch.setenv(f"BACKUPS_{name.upper()}", "")
    assert Settings.read() == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("POOL_SIZE", "0", "must be a whole number from 1 to 1000, such as 10"),
        ("CATALOG_METRICS_LIMIT", "many", "must be a whole number from 1 to 100000, such as 1000"),
        ("REQUEST_TIMEOUT", "soon", "must be a number of seconds from 0 to 604800, such as 10"),
        ("CATALOG_METRICS", "maybe", "must be true or false"),
        ("AUTH", "yes", "must be 'none' or 'jwt'"),
        ("LISTEN", "50051", "must be host:port, such as 127.0.0.1:50051"),
    ],
)
def test_forms_and_examples(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    """The error for a bad value names the setting, the form of its values and an example."""
    monkeypatch.setenv(f"BACKUPS_{name}", value)
    with pytest.raises(InvalidSettings) as caught:
        Settings.read()
    assert str(caught.value) == f"BACKUPS_{name}: {message}"


@pytest.mark.parametrize("text", ["backups.example.com:443", "localhost:8443", "127.0.0.1:1", "[2001:db8::1]:443", "h:65535"])
def test_public_addresses(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The public address is returned to clients as it was set."""
    monkeypatch.setenv("BACKUPS_PUBLIC_ADDRESS", text)
    assert str(Settings.read().public_address) == text


@pytest.mark.parametrize(
    "source",
    ["/etc/jwks.json", "jwks.json", "https://h/jwks", "https://h:8443", "http://127.0.0.1:1/x?y", "http://localhost/", "http://[::1]:1/"],
)
def test_jwks_sources(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Keys come from a file, over https, or over http from a loopback address."""
    monkeypatch.setenv("BACKUPS_JWKS", source)
    assert Settings.read().jwks == source


def test_http_jwks_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for an http URL has the reason and the allowed values."""
    monkeypatch.setenv("BACKUPS_JWKS", "http://identity.example.org/jwks.json")
    with pytest.raises(InvalidSettings, match="^BACKUPS_JWKS: must begin with https://, because http:// lets an attacker"):
        Settings.read()


def test_jwks_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys must be usable for at least two refresh periods."""
    monkeypatch.setenv("BACKUPS_JWKS_REFRESH", "1801")
    with pytest.raises(InvalidSettings, match="^BACKUPS_JWKS_MAX_AGE must be at least twice BACKUPS_JWKS_REFRESH"):
        Settings.read()
    monkeypatch.setenv("BACKUPS_JWKS_MAX_AGE", "3602")
    Settings.read()


def test_tls_client_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of client certificates are DNS names and URIs, and need an authority."""
    monkeypatch.setenv("BACKUPS_TLS_CLIENT_NAMES", "Envoy.example.org, spiffe://Example.org/Envoy")
    with pytest.raises(InvalidSettings, match="^BACKUPS_TLS_CLIENT_NAMES needs BACKUPS_TLS_CLIENT_CA$"):
        Settings.read()
    for name in ("CERT", "KEY", "CLIENT_CA"):
        monkeypatch.setenv(f"BACKUPS_TLS_{name}", "file.pem")
    assert Settings.read().tls_client_names == frozenset({"envoy.example.org", "spiffe://Example.org/Envoy"})


@pytest.mark.parametrize("names", [["CERT"], ["KEY"], ["CLIENT_CA"], ["CERT", "CLIENT_CA"]])
def test_incomplete_tls(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """A certificate without its key, a key without its certificate, and an authority without both are an error."""
    for name in names:
        monkeypatch.setenv(f"BACKUPS_TLS_{name}", "file.pem")
    with pytest.raises(InvalidSettings, match="^BACKUPS_TLS_CERT and BACKUPS_TLS_KEY are needed together"):
        Settings.read()


def test_every_invalid_value_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several invalid values are reported together, one on each line."""
    monkeypatch.setenv("BACKUPS_POOL_SIZE", "0")
    monkeypatch.setenv("BACKUPS_LISTEN", "x")
    with pytest.raises(InvalidSettings) as caught:
        Settings.read()
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["BACKUPS_LISTEN", "BACKUPS_POOL_SIZE"]


def test_no_secret_in_a_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the settings' repr nor their str shows a password or a key."""
    monkeypatch.setenv("BACKUPS_DATABASE_URL", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("BACKUPS_PAGE_TOKEN_KEY", _KEY)
    for text in (repr(Settings.read()), str(Settings.read())):
        assert "hunter2" not in text
        assert _KEY not in text
        assert "\\x00\\x01" not in text


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "[::]:9464", "example.org:9464"])
def test_catalog_metrics_need_a_private_address(monkeypatch: pytest.MonkeyPatch, listen: str) -> None:
    """Metrics of the catalog listen on loopback only, unless the operator allows other addresses; other metrics are not restricted."""
    monkeypatch.setenv("BACKUPS_METRICS_LISTEN", listen)
    Settings.read().require_safe_addresses()
    monkeypatch.setenv("BACKUPS_CATALOG_METRICS", "true")
    with pytest.raises(InvalidSettings, match="BACKUPS_ALLOW_ANONYMOUS_METRICS=true"):
        Settings.read().require_safe_addresses()
    monkeypatch.setenv("BACKUPS_ALLOW_ANONYMOUS_METRICS", "true")
    Settings.read().require_safe_addresses()
    monkeypatch.setenv("BACKUPS_ALLOW_ANONYMOUS_METRICS", "false")
    monkeypatch.setenv("BACKUPS_METRICS_LISTEN", "127.0.0.1:9464")
    Settings.read().require_safe_addresses()


def test_catalog_metrics_need_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics of the catalog without a metrics address are an error."""
    monkeypatch.setenv("BACKUPS_CATALOG_METRICS", "true")
    with pytest.raises(InvalidSettings, match="^BACKUPS_CATALOG_METRICS needs BACKUPS_METRICS_LISTEN$"):
        Settings.read()
    monkeypatch.setenv("BACKUPS_METRICS_LISTEN", "127.0.0.1:0")
    assert Settings.read().catalog_metrics_limit == 1000
