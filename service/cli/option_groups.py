"""Options that several commands share, each defined once.

Typer reads the options of a command from its signature. `option_groups` replaces a parameter of the command by the parameters of a function
that makes its value.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any

import typer

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)


def option_groups(**makers: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that fills parameters of a command from groups of options.

    Args:
        makers: for each parameter of the command, a function. Its parameters are the options, and its result is the parameter's value.
    """
    groups = {name: list(inspect.signature(make).parameters.values()) for name, make in makers.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**arguments: Any) -> None:
            values = {name: make(**{option.name: arguments.pop(option.name) for option in groups[name]}) for name, make in makers.items()}
            command(**arguments, **values)

        own = [each for each in inspect.signature(command).parameters.values() if each.name not in makers]
        options = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for group in groups.values() for option in group]
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own] + options
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def check_text(value: str | None) -> str | None:
    """Reject an argument with bytes that are not text in the encoding of the locale: PostgreSQL and protobuf cannot represent them."""
    if value is not None and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise typer.BadParameter(f"{ascii(value)[:100]} is not text in the encoding of this locale") from None
    return value


def check_host_name(value: str | None) -> str | None:
    """Reject an argument that is not a DNS name or an IPv4 address: gRPC would only report that the certificate does not match."""
    if value is not None and not _HOST_NAME.fullmatch(value):
        raise typer.BadParameter(f"{ascii(value)[:100]} is not a host name, such as backups.example.org")
    return value
