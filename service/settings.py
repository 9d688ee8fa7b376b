"""All settings of the server and its commands: the variables `BACKUPS_*`.

Other modules read only variables of other standards: the token of the client, `XDG_DATA_HOME`, and those of OpenTelemetry.

Every setting has a default with which the service works. An invalid value is an error of one line, which does not contain secrets.
"""

import base64
import binascii
import ipaddress
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretBytes, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.address import Address, Network, is_loopback
from service.database_url import parse_database_url
from service.errors import InvalidSettings
from service.page_token import DEFAULT_KEY, KEY_LENGTHS
from service.project_files import default_data_folder
from service.setting_names import ENV_PREFIX, check_names, known_names

_LONGEST_S = 7 * 24 * 3600

_ROLE = re.compile(r"[a-z_][a-z0-9_$-]{0,62}")

_JWKS_URL = r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?(/[!-~]*)?"
_TLS_NAME = r"[A-Za-z0-9*_.-]+|[A-Za-z][A-Za-z0-9+.-]*:[!-+\--~]+"

_PUBLIC_HOST = r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?|[0-9a-fA-F:]*:[0-9a-fA-F:.]*"


def _address(text: object) -> Address:
    if isinstance(text, Address):
        return text
    host, colon, port = str(text).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 2**16):
        raise ValueError("must be host:port, such as 127.0.0.1:50051")
    return Address(host, int(port))


def _public_address(text: object) -> Address:
    """Parse an address that clients can connect to: no wildcard, no port 0, and no part of a URL."""
    address = _address(text)
    if not address.port or not re.fullmatch(_PUBLIC_HOST, address.host) or address.host in ("0.0.0.0", "::"):  # noqa: S104  # rejected
        raise ValueError("must be the host:port that clients connect to, such as backups.example.com:443")
    return address


def _database_url(text: object) -> object:
    if isinstance(text, str):
        parse_database_url(text)
    return text


def _role(name: str) -> str:
    if not _ROLE.fullmatch(name):
        raise ValueError(
            "must be the name of a PostgreSQL role: a lower-case letter, then lower-case letters, digits, _ $ -, at most 63 characters"
        )
    return name


def _key(text: object) -> object:
    """Return the bytes of a page token key: base64, as `openssl rand -base64 32` prints it, or the word `default`."""
    if not isinstance(text, str):
        return text
    if text == "default":
        return DEFAULT_KEY
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) not in KEY_LENGTHS:
        raise ValueError("must be base64 of 32, 48 or 64 random bytes (openssl rand -base64 32), or the word default")
    return key


def _networks(text: object) -> object:
    """Parse networks: addresses or CIDR notation, separated by commas."""
    if not isinstance(text, str):
        return text
    try:
        return [ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError("must be addresses or networks, separated by commas, such as 127.0.0.1,10.0.0.0/8") from None


def _keys(text: object) -> object:
    return [part for part in text.split(",") if part.strip()] if isinstance(text, str) else text


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= _LONGEST_S:
        raise ValueError(f"must be a number of seconds from 0 to {_LONGEST_S}")
    return timedelta(seconds=seconds)


def _positive(value: timedelta) -> timedelta:
    if not value:
        raise ValueError(f"must be a number of seconds, more than 0 and at most {_LONGEST_S}")
    return value


def _jwks(source: str) -> str:
    """Check that a URL of a JWKS cannot be answered by a network attacker."""
    if "://" not in source:
        return source  # a file
    if not re.fullmatch(_JWKS_URL, source):
        raise ValueError("must be a file's path or a URL such as https://identity.example.org/jwks.json, without user and password")
    url = urlsplit(source)
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise ValueError(
            "must begin with https://, because http:// lets an attacker on the network replace the keys (allowed for loopback only)"
        )
    return source


def _tls_names(text: object) -> object:
    """Split accepted names. Host names are compared without regard to case, URIs as they are."""
    if not isinstance(text, str):
        return text
    names = [name.strip() for name in text.split(",")]
    if not all(re.fullmatch(_TLS_NAME, name) for name in names):
        raise ValueError(
            "must be DNS names or URIs of certificates, separated by commas, such as envoy.example.org,spiffe://example.org/envoy"
        )
    return frozenset(name if ":" in name else name.lower() for name in names)


Role = Annotated[str, AfterValidator(_role)]
Key = Annotated[SecretBytes, BeforeValidator(_key)]
SecondsOrZero = Annotated[timedelta, BeforeValidator(_seconds)]
Seconds = Annotated[SecondsOrZero, AfterValidator(_positive)]
PublicAddress = Annotated[Address | None, NoDecode, BeforeValidator(lambda text: text and _public_address(text))]
OptionalAddress = Annotated[Address | None, NoDecode, BeforeValidator(lambda text: text and _address(text))]


class Settings(BaseSettings):
    """Read from environment variables of these names, in capitals, after `BACKUPS_`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, hide_input_in_errors=True, frozen=True, validate_default=True
    )

    database_url: Annotated[
        SecretStr | None,
        BeforeValidator(_database_url),
        Field(description="PostgreSQL, as postgresql://user:password@host:port/database."),
    ] = None
    service_role: Annotated[Role, Field(description="Role that `migrate` grants read access to the catalog, if it exists.")] = (
        "backups_service"
    )
    import_role: Annotated[Role, Field(description="Role that `migrate` grants write access to the rows of the catalog, if it exists.")] = (
        "backups_import"
    )
    listen: Annotated[
        Address, NoDecode, BeforeValidator(_address), Field(description="host:port to serve gRPC on; port 0 is any free one.")
    ] = Address("127.0.0.1", 50051)
    public_address: Annotated[
        PublicAddress,
        Field(description="host:port at which official clients reach the service, over TLS. If set, `ApiEndpointService` is served."),
    ] = None
    page_token_key: Annotated[Key, Field(description="Seals page tokens: base64 of 32, 48 or 64 random bytes, or `default`.")] = (
        SecretBytes(DEFAULT_KEY)
    )
    page_token_keys_accepted: Annotated[
        list[Key], NoDecode, BeforeValidator(_keys), Field(description="More keys whose page tokens are accepted, separated by commas.")
    ] = []
    pool_size: Annotated[int, Field(ge=1, le=1000, description="Maximum number of connections to PostgreSQL for calls.")] = 10
    pool_max_age: Annotated[
        Seconds,
        Field(
            description="Maximum age of a connection to PostgreSQL, in seconds. After a failover, no query uses the old server for longer."
        ),
    ] = timedelta(minutes=5)
    pooler: Annotated[
        Literal["none", "transaction"],
        Field(description="`transaction`: the connection to PostgreSQL leads through a pooler in transaction mode, such as PgBouncer."),
    ] = "none"
    max_replication_lag: Annotated[
        Seconds, Field(description="Maximum replication lag of a standby, in seconds. With more lag, the replica is not ready.")
    ] = timedelta(minutes=1)
    connect_timeout: Annotated[Seconds, Field(description="Timeout for connecting to PostgreSQL, in seconds.")] = timedelta(seconds=3)
    acquire_timeout: Annotated[
        Seconds, Field(description="How long a call waits for a connection before it fails with UNAVAILABLE, in seconds.")
    ] = timedelta(seconds=5)
    request_timeout: Annotated[
        Seconds,
        Field(description="How long a call may take, in seconds; then DEADLINE_EXCEEDED. Clients have the same time to read the response."),
    ] = timedelta(seconds=10)
    shutdown_grace: Annotated[Seconds, Field(description="How long calls in flight may take during shutdown, in seconds.")] = timedelta(
        seconds=10
    )
    drain_delay: Annotated[
        SecondsOrZero,
        Field(description="How long calls are answered after NOT_SERVING is reported, for load balancers, in seconds; 0 in `dev`."),
    ] = timedelta(seconds=5)
    connection_max_age: Annotated[
        Seconds | None, Field(description="Maximum age of a client's connection, in seconds, for load balancers that balance connections.")
    ] = None
    concurrent_accept: Annotated[
        bool, Field(description="`false`: accept one call of each method at a time, by grpc.aio's public API, at about twice the CPU time.")
    ] = True
    admission_limit: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="Limit of the cost of calls in flight: 1 each, and 1 for each hundred backups of a page.",
        ),
    ] = 1000
    trusted_proxies: Annotated[
        list[Network],
        NoDecode,
        BeforeValidator(_networks),
        Field(description="Peers whose last address in `x-forwarded-for` is the client: addresses or networks, separated by commas."),
    ] = []
    auth: Annotated[
        Literal["none", "jwt"], Field(description="`jwt`: callers need a bearer token. `none`: any client can read all backups.")
    ] = "none"
    allow_anonymous: Annotated[bool, Field(description="Allow `none` on addresses other than loopback.")] = False
    jwks: Annotated[
        Annotated[str, AfterValidator(_jwks)] | None, Field(description="The keys that sign tokens: a JWKS, as a file or an https URL.")
    ] = None
    jwks_refresh: Annotated[
        Seconds, Field(description="How often the JWKS is read, in seconds. A withdrawn key stops working within this time.")
    ] = timedelta(minutes=5)
    jwks_max_age: Annotated[
        Seconds, Field(description="How long keys are used if the JWKS cannot be read, in seconds; at least twice BACKUPS_JWKS_REFRESH.")
    ] = timedelta(hours=1)
    jwt_issuer: Annotated[str | None, Field(description="`iss` of tokens.")] = None
    jwt_audience: Annotated[str | None, Field(description="`aud` of tokens.")] = None
    jwt_max_lifetime: Annotated[Seconds, Field(description="How far in the future `exp` of a token may be, in seconds.")] = timedelta(
        days=1
    )
    tls_cert: Annotated[Path | None, Field(description="Certificate chain, PEM; reloaded when it changes.")] = None
    tls_key: Annotated[Path | None, Field(description="Its private key, PEM, without a password.")] = None
    tls_client_ca: Annotated[Path | None, Field(description="If set, clients need a certificate of this authority.")] = None
    tls_client_names: Annotated[
        frozenset[str] | None,
        NoDecode,
        BeforeValidator(_tls_names),
        Field(description="DNS names or URIs, separated by commas. If set, client certificates must have one of them."),
    ] = None
    health_listen: Annotated[
        OptionalAddress, Field(description="host:port for health checks only, in plaintext, for probes without TLS.")
    ] = None
    metrics_listen: Annotated[OptionalAddress, Field(description="host:port for Prometheus metrics, over HTTP.")] = None
    catalog_metrics: Annotated[bool, Field(description="Serve metrics of the catalog: last backups, attempts and imports.")] = False
    allow_anonymous_metrics: Annotated[
        bool,
        Field(description="Allow metrics of the catalog, which contain folder and cluster ids, on addresses other than loopback."),
    ] = False
    catalog_metrics_refresh: Annotated[Seconds, Field(description="How often the metrics of the catalog are read, in seconds.")] = (
        timedelta(minutes=1)
    )
    catalog_metrics_limit: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            description="Maximum number of clusters with metrics, once for each tool and database: those with the oldest last backup.",
        ),
    ] = 1000
    reflection: Annotated[bool | None, Field(description="Serve gRPC reflection; on in `dev` and off in `serve` unless set.")] = None
    data_folder: Annotated[Path, Field(default_factory=default_data_folder, description="Folder of the embedded PostgreSQL of `dev`.")]
    log_format: Annotated[Literal["json", "console"], Field(description="json, or console for a human-readable format.")] = "json"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="The least severe level that is logged.")] = "info"

    @classmethod
    def read(cls, **overrides: Any) -> "Settings":
        """Read the environment. `overrides` are options of a command.

        Raises:
            InvalidSettings: one line for each invalid setting.
        """
        try:
            return cls(**overrides)
        except ValidationError as exc:
            lines = [_line(error["loc"], error["msg"], error["type"]) for error in exc.errors(include_input=False)]
            raise InvalidSettings("\n".join(dict.fromkeys(lines))) from None

    @property
    def database_warnings(self) -> list[str]:
        """Describe settings of the database that work, but are not safe."""
        return parse_database_url(self.database_url.get_secret_value()).warnings if self.database_url else []

    @property
    def warnings(self) -> list[str]:
        """Describe unknown variables, and settings that work but are not safe."""
        return [*check_environment(), *self.database_warnings]

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        """Check settings that depend on each other."""
        if self.auth == "jwt":
            for name in ("jwks", "jwt_issuer", "jwt_audience"):
                if not getattr(self, name):
                    raise ValueError(f"{ENV_PREFIX}AUTH=jwt needs {ENV_PREFIX}{name.upper()}")
        if (self.tls_cert is None) != (self.tls_key is None) or (self.tls_client_ca and not self.tls_cert):
            raise ValueError(f"{ENV_PREFIX}TLS_CERT and {ENV_PREFIX}TLS_KEY are needed together, {ENV_PREFIX}TLS_CLIENT_CA only with them")
        if self.tls_client_names and not self.tls_client_ca:
            raise ValueError(f"{ENV_PREFIX}TLS_CLIENT_NAMES needs {ENV_PREFIX}TLS_CLIENT_CA")
        if self.jwks_max_age < 2 * self.jwks_refresh:
            raise ValueError(
                f"{ENV_PREFIX}JWKS_MAX_AGE must be at least twice {ENV_PREFIX}JWKS_REFRESH: otherwise one failed read stops all calls"
            )
        if self.catalog_metrics and not self.metrics_listen:
            raise ValueError(f"{ENV_PREFIX}CATALOG_METRICS needs {ENV_PREFIX}METRICS_LISTEN")
        return self

    @property
    def exports_traces(self) -> bool:
        """True if OpenTelemetry's variables turn tracing on. An empty variable counts as unset."""
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return False
        if exporter := os.environ.get("OTEL_TRACES_EXPORTER", "").strip():
            return exporter != "none"
        return any(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip() for name in ("ENDPOINT", "TRACES_ENDPOINT"))

    def require_safe_addresses(self) -> None:
        """Reject listen addresses that would publish the catalog by mistake.

        Raises:
            InvalidSettings: without authentication, an address other than loopback serves the API or the metrics of the catalog.
        """
        if self.auth == "none" and not self.allow_anonymous and not self.listen.is_loopback:
            raise InvalidSettings(
                f"{ENV_PREFIX}LISTEN is {self.listen}, where any client could read all backups: "
                f"set {ENV_PREFIX}AUTH=jwt, or {ENV_PREFIX}ALLOW_ANONYMOUS=true if this is intended"
            )
        if self.catalog_metrics and self.metrics_listen and not self.metrics_listen.is_loopback and not self.allow_anonymous_metrics:
            raise InvalidSettings(
                f"{ENV_PREFIX}METRICS_LISTEN is {self.metrics_listen}, and {ENV_PREFIX}CATALOG_METRICS serves folder and cluster ids there "
                f"without authentication: listen on loopback, or set {ENV_PREFIX}ALLOW_ANONYMOUS_METRICS=true if only Prometheus reaches it"
            )

    def require_database_url(self) -> str:
        """Return the database URL.

        Raises:
            InvalidSettings: it is not set.
        """
        if self.database_url is None:
            raise InvalidSettings(f"{ENV_PREFIX}DATABASE_URL is not set (postgresql://user:password@host:port/database)")
        return self.database_url.get_secret_value()


def check_environment() -> list[str]:
    """Return a warning for each unknown variable `BACKUPS_...`.

    Raises:
        InvalidSettings: a variable is probably misspelt.
    """
    return check_names(os.environ, known_names(Settings.model_fields))


def _line(location: tuple[int | str, ...], message: str, kind: str) -> str:
    """Return the name of a setting, the form of its values and an example, or the message of a check of several settings."""
    if not location:
        return message.removeprefix("Value error, ")
    name = str(location[0])
    reason = message.removeprefix("Value error, ").replace("Input should be", "must be")
    field = Settings.model_fields[name]
    if field.annotation is int:
        low, high = (next(getattr(each, side) for each in field.metadata if hasattr(each, side)) for side in ("ge", "le"))
        reason = f"must be a whole number from {low} to {high}, such as {field.default}"
    elif kind == "bool_parsing":
        reason = "must be true or false"
    elif isinstance(field.default, timedelta):
        reason += f", such as {field.default.total_seconds():g}"
    return f"{ENV_PREFIX}{name.upper()}: {reason}"
