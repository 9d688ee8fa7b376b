"""Ids of calls, which clients, the log and the access log of a proxy share."""

import random
import re
from collections.abc import Iterable

REQUEST_ID_KEY = "x-request-id"
"""Key of the id in the metadata of requests and responses."""

_KEYS = ("x-client-request-id", REQUEST_ID_KEY)
_WELL_FORMED = re.compile(r"[A-Za-z0-9._:/+=@-]{1,100}")


def request_id_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the client's request id if it is well-formed, otherwise a new one."""
    given = {key: value for key, value in metadata if key in _KEYS}
    for key in _KEYS:
        value = given.get(key)
        if isinstance(value, str) and _WELL_FORMED.fullmatch(value):
            return value
    return new_request_id()


def new_request_id() -> str:
    """Return a random UUID of version 4. It is not a secret, so it does not need the kernel's randomness as in `uuid.uuid4`."""
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
