"""
Every setting of the server and its commands: the only reader of the environment.

A setting that is absent has a default with which the service works; a value that cannot be used is one clear line, without the value
where that could be secret.
"""

import base64
import binascii
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretBytes, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import InvalidSettings
from service.page_token import DEFAULT_KEY, KEY_LENGTHS

ENV_PREFIX = "BACKUPS_"

_HOST = r"(\[[0-9a-fA-F:.]+\]|[\w.%/-]*)(:\d{1,5})?"
_HOSTS = re.compile(rf"{_HOST}(,{_HOST})*")


class Address(NamedTuple):
    """Where to listen; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _address(text: object) -> Address:
    if isinstance(text, Address):
        return text
    host, colon, port = str(text).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 2**16):
        raise ValueError("must be host:port, such as 127.0.0.1:50051")
    return Address(host, int(port))


def _database_url(text: object) -> object:
    """Checks the parts that asyncpg would quote in its own complaint, a misspelt password among them."""
    if isinstance(text, str):
        url = urlsplit(text)
        hosts = url.netloc.rpartition("@")[2]
        if url.scheme not in ("postgresql", "postgres") or not re.fullmatch(_HOSTS, hosts):
            raise ValueError("must be postgresql://user:password@host:port/database, special characters percent-encoded")
    return text


def _key(text: object) -> object:
    """The bytes of a page token key: base64, as `openssl rand -base64 32` prints it, or the word `default`."""
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


def _keys(text: object) -> object:
    return [part for part in text.split(",") if part.strip()] if isinstance(text, str) else text


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= 3600:
        raise ValueError("must be a number of seconds, more than 0 and at most 3600")
    return timedelta(seconds=seconds)


Key = Annotated[SecretBytes, BeforeValidator(_key)]
Seconds = Annotated[timedelta, BeforeValidator(_seconds)]


class Settings(BaseSettings):
    """Read from environment variables of these names, in capitals, after `BACKUPS_`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, hide_input_in_errors=True, frozen=True, validate_default=True)

    database_url: Annotated[
        SecretStr | None,
        BeforeValidator(_database_url),
        Field(description="PostgreSQL, as postgresql://user:password@host:port/database."),
    ] = None
    listen: Annotated[
        Address, NoDecode, BeforeValidator(_address), Field(description="host:port to serve gRPC on; port 0 is any free one.")
    ] = Address("127.0.0.1", 50051)
    page_token_key: Annotated[Key, Field(description="Seals page tokens: base64 of 32, 48 or 64 random bytes, or `default`.")] = (
        SecretBytes(DEFAULT_KEY)
    )
    page_token_keys_accepted: Annotated[
        list[Key], NoDecode, BeforeValidator(_keys), Field(description="Further keys whose page tokens are accepted, with commas between.")
    ] = []
    pool_size: Annotated[int, Field(ge=1, le=1000, description="The most connections to PostgreSQL that a server holds.")] = 10
    connect_timeout: Annotated[Seconds, Field(description="The longest that connecting to PostgreSQL may take, in seconds.")] = timedelta(
        seconds=3
    )
    acquire_timeout: Annotated[
        Seconds, Field(description="The longest that a call waits for a connection, in seconds; then it is UNAVAILABLE.")
    ] = timedelta(seconds=5)
    request_timeout: Annotated[
        Seconds, Field(description="The longest that any call may take, in seconds; then it is DEADLINE_EXCEEDED.")
    ] = timedelta(seconds=10)
    shutdown_grace: Annotated[
        Seconds, Field(description="How long calls in flight may take to finish when the server stops, in seconds.")
    ] = timedelta(seconds=10)
    reflection: Annotated[bool | None, Field(description="Serve gRPC reflection; on in `dev` and off in `serve` unless set.")] = None
    data_folder: Annotated[Path, Field(description="Where `dev` keeps its embedded PostgreSQL.")] = Path(__file__).parents[1] / ".data"
    log_format: Annotated[Literal["json", "console"], Field(description="json, or console for people.")] = "json"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="The least severe level that is logged.")] = "info"

    @classmethod
    def read(cls, **overrides: Any) -> "Settings":
        """
        The settings of the environment; overrides come from a command's options.

        Raises:
            InvalidSettings: one line a setting that cannot be used.

        """
        try:
            return cls(**overrides)
        except ValidationError as exc:
            lines = [f"{ENV_PREFIX}{str(error['loc'][0]).upper()}: {_reason(error['msg'])}" for error in exc.errors(include_input=False)]
            raise InvalidSettings("\n".join(dict.fromkeys(lines))) from None

    def require_database_url(self) -> str:
        """
        Raises:
            InvalidSettings: there is none.

        """
        if self.database_url is None:
            raise InvalidSettings(f"{ENV_PREFIX}DATABASE_URL is not set (postgresql://user:password@host:port/database)")
        return self.database_url.get_secret_value()


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ")
