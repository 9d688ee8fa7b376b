"""Page tokens: a position in one folder's list, sealed so that a client can neither read nor make one.

    token = base64url(version byte, AES-SIV(created_at in microseconds as 8 bytes, id)), without padding
    associated data: the method and the folder

A token grants nothing (the folder is authorised on every call); sealing keeps clients from depending on what is inside.
1 + 16 + 8 + 50 bytes are 100 characters: all that the contract allows.
"""

import base64
import re
from collections.abc import Sequence
from datetime import timedelta

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from service.backup import ID_MAX_LENGTH, TIME_MAX, TIME_MIN, Position, is_backup_id
from service.errors import InvalidPageToken

# Published, so that a page token works between replicas that were given no key.
DEFAULT_KEY = b"greenplum-backup-service/default"
KEY_LENGTHS = (32, 48, 64)

_VERSION = b"\x01"
_METHOD = b"/yandex.cloud.mdb.greenplum.v1.BackupService/List"
_TIME_BYTES = 8
_SHAPE = re.compile(r"[A-Za-z0-9_-]{35,100}")  # an id of one character to one of 50
_MICROSECOND = timedelta(microseconds=1)


class PageTokens:
    """Seals positions with one key, and opens what any of the accepted keys sealed.

    Keys are rotated in three rolling steps: accept the new one everywhere, seal with it, drop the old one.
    """

    def __init__(self, key: bytes = DEFAULT_KEY, *, accepted: Sequence[bytes] = ()) -> None:
        self._sealer = AESSIV(key)
        self._openers = [self._sealer, *(AESSIV(other) for other in accepted)]

    def seal(self, position: Position, *, folder_id: str) -> str:
        """The token of the page after this position."""
        created_at_us = (position.created_at - TIME_MIN) // _MICROSECOND
        plaintext = created_at_us.to_bytes(_TIME_BYTES) + position.id.encode("ascii")
        return _encode(_VERSION + self._sealer.encrypt(plaintext, [_METHOD, folder_id.encode()]))

    def open(self, token: str, *, folder_id: str) -> Position | None:
        """The position that a token was sealed for; None for an empty token, which asks for the first page.

        Raises:
            InvalidPageToken: no accepted key sealed it, for this folder, in this very spelling.
        """
        if not token:
            return None
        sealed = _decode(token)
        associated = [_METHOD, folder_id.encode()]
        for opener in self._openers:
            try:
                return _position(opener.decrypt(sealed, associated))
            except InvalidTag:
                continue
        raise InvalidPageToken


def _position(plaintext: bytes) -> Position:
    """Checks what it reads: with the published key, anybody can seal anything."""
    created_at_us = int.from_bytes(plaintext[:_TIME_BYTES])
    backup_id = plaintext[_TIME_BYTES:].decode("ascii", errors="replace")
    if created_at_us > (TIME_MAX - TIME_MIN) // _MICROSECOND or not is_backup_id(backup_id):
        raise InvalidPageToken
    return Position(TIME_MIN + created_at_us * _MICROSECOND, backup_id)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(token: str) -> bytes:
    """The sealed bytes; base64 has several spellings of the same bytes, and only ours is accepted."""
    if not _SHAPE.fullmatch(token) or len(token) % 4 == 1:
        raise InvalidPageToken
    data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    if _encode(data) != token or data[:1] != _VERSION:
        raise InvalidPageToken
    return data[1:]


assert len(_encode(bytes(1 + 16 + _TIME_BYTES + ID_MAX_LENGTH))) == 100
