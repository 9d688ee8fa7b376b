"""A request's limits, read from the options of its fields in proto/: no handler repeats one."""

import functools
import re
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from service import pb
from service.errors import InvalidRequest, Violation

_Check = Callable[[Any], bool]


def validate(request: Message) -> None:
    """
    Raises:
        InvalidRequest: with every violation, one a field.
    """
    violations: dict[str, Violation] = {}
    for field, breaks, description in _limits(request.DESCRIPTOR):
        if breaks(getattr(request, field)):
            violations.setdefault(field, Violation(field, description))
    if violations:
        raise InvalidRequest(list(violations.values()))


@functools.cache
def _limits(message: Descriptor) -> list[tuple[str, _Check, str]]:
    """Each limit of a message: the field, whether a value breaks it, and what to tell."""
    return [(field.name, *limit) for field in message.fields for limit in _field_limits(field)]


def _field_limits(field: FieldDescriptor) -> list[tuple[_Check, str]]:
    options = field.GetOptions()
    limits: list[tuple[_Check, str]] = []
    if options.Extensions[pb.validation.required]:
        limits.append((lambda value: not value, "Is required."))
    if value := options.Extensions[pb.validation.value]:
        low, high = _range(value)
        limits.append((lambda number: not low <= number <= high, f"Must be from {low} to {high}."))
    if length := options.Extensions[pb.validation.length]:
        least, most = _range(length)
        limits.append((lambda text: not least <= len(text) <= most, f"Must have {least} to {most} characters."))
    return limits


def _range(text: str) -> tuple[int, int]:
    """`0-1000`, `<=50`: both ends included."""
    matched = re.fullmatch(r"(\d+)-(\d+)|<=(\d+)", text)
    assert matched, f"proto/ has a limit of an unknown form: {text}"
    low, high, most = matched.groups()
    return (0, int(most)) if most else (int(low), int(high))
