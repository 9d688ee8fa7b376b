"""Validation of requests against the limits of the contract (service/contract.py)."""

import functools
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from service.contract import limits_of
from service.errors import InvalidRequest, Violation

_Check = Callable[[Any], bool]


def validate(request: Message) -> None:
    """Check every field of a request.

    Raises:
        InvalidRequest: with the first violation of each field.
    """
    violations: dict[str, Violation] = {}
    for field, is_violated, description in _checks(request.DESCRIPTOR):
        if is_violated(getattr(request, field)):
            violations.setdefault(field, Violation(field, description))
    if violations:
        raise InvalidRequest(list(violations.values()))


@functools.cache
def _checks(message: Descriptor) -> list[tuple[str, _Check, str]]:
    """Return the checks of a message, each with the name of the field, a function that returns True for an invalid value, and the limit."""
    return [(field.name, *check) for field in message.fields for check in _field_checks(field)]


def _field_checks(field: FieldDescriptor) -> list[tuple[_Check, str]]:
    limits = limits_of(field)
    checks: list[tuple[_Check, str]] = []
    if limits.is_required:
        checks.append((lambda value: not value, "Is required."))
    if limits.value:
        low, high = limits.value
        checks.append((lambda number: not low <= number <= high, f"Must be from {low} to {high}."))
    if limits.length:
        minimum, maximum = limits.length
        checks.append((lambda text: not minimum <= len(text) <= maximum, f"Must have {minimum} to {maximum} characters."))
    return checks
