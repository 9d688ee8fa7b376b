"""Limits of the contract, read from the options of the fields in proto/. No other module of the server repeats one.

The CHECK constraints of the schema repeat them in SQL; a test compares.
"""

import re
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from service import pb


class Range(NamedTuple):
    """The minimum and the maximum of a value, or of a length in characters. Both are allowed."""

    minimum: int
    maximum: int


class FieldLimits(NamedTuple):
    """Requirements on a field of a request."""

    is_required: bool
    value: Range | None
    length: Range | None


def limits_of(field: FieldDescriptor) -> FieldLimits:
    """Return the limits that the options of a field declare."""
    options = field.GetOptions()
    value, length = options.Extensions[pb.validation.value], options.Extensions[pb.validation.length]
    return FieldLimits(options.Extensions[pb.validation.required], _range(value), _range(length))


def _range(text: str) -> Range | None:
    """Parse `0-1000` or `<=50`. Both bounds are allowed values."""
    if not text:
        return None
    matched = re.fullmatch(r"(\d+)-(\d+)|<=(\d+)", text)
    assert matched, f"proto/ has a limit of an unknown form: {text}"
    minimum, maximum, only_maximum = matched.groups()
    return Range(0, int(only_maximum)) if only_maximum else Range(int(minimum), int(maximum))


def _length(message: Descriptor, field: str) -> int:
    length = limits_of(message.fields_by_name[field]).length
    assert length, f"proto/ has no limit of {message.name}.{field}"
    return length.maximum


def _value(message: Descriptor, field: str) -> int:
    value = limits_of(message.fields_by_name[field]).value
    assert value, f"proto/ has no limit of {message.name}.{field}"
    return value.maximum


FOLDER_ID_MAX_LENGTH = _length(pb.ListBackupsRequest.DESCRIPTOR, "folder_id")
CLUSTER_ID_MAX_LENGTH = _length(pb.ListClusterBackupsRequest.DESCRIPTOR, "cluster_id")
PAGE_SIZE_MAX = _value(pb.ListBackupsRequest.DESCRIPTOR, "page_size")
PAGE_TOKEN_MAX_LENGTH = _length(pb.ListBackupsRequest.DESCRIPTOR, "page_token")
