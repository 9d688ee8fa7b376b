"""Page tokens: positions in one list of backups, encrypted and authenticated.

    token = base64url(version byte, AES-SIV(created_at in microseconds as 8 bytes, id)), without padding
    associated data: the method, and the id of the folder or cluster

A token grants no access: every call is authorized. Encryption keeps clients from depending on the content.
1 + 16 + 8 + 50 bytes are 100 characters, the contract's limit.
"""

import base64
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from service.backup import ID_MAX_LENGTH, TIME_MAX, TIME_MIN, Position, is_backup_id
from service.contract import PAGE_TOKEN_MAX_LENGTH
from service.errors import InvalidPageToken

# Published, so that replicas without a configured key accept each other's tokens.
DEFAULT_KEY = b"greenplum-backup-service/default"
KEY_LENGTHS = (32, 48, 64)

_VERSION = b"\x01"
_TIME_BYTES = 8
_SHAPE = re.compile(rf"[A-Za-z0-9_-]{{35,{PAGE_TOKEN_MAX_LENGTH}}}")  # ids of 1 to 50 characters
_MICROSECOND = timedelta(microseconds=1)


class TokenScope(NamedTuple):
    """The list that a token belongs to. A token is rejected for every other list."""

    method: str
    """Full path of the gRPC method, such as `/package.Service/List`."""
    parent_id: str
    """ID of the folder or cluster whose backups are listed."""

    @property
    def associated_data(self) -> list[bytes]:
        return [self.method.encode(), self.parent_id.encode()]


class PageTokens:
    """Page tokens that are sealed with one key and opened with any of the accepted keys.

    Keys are rotated in three rolling steps: accept the new key on every replica, seal with it, remove the old key.
    """

    def __init__(self, key: bytes = DEFAULT_KEY, *, accepted: Sequence[bytes] = ()) -> None:
        self._sealer = AESSIV(key)
        self._openers = [self._sealer, *(AESSIV(other) for other in accepted)]

    def seal(self, position: Position, scope: TokenScope) -> str:
        """Return the token of the page after this position."""
        created_at_us = (position.created_at - TIME_MIN) // _MICROSECOND
        plaintext = created_at_us.to_bytes(_TIME_BYTES) + position.id.encode("ascii")
        return _encode(_VERSION + self._sealer.encrypt(plaintext, scope.associated_data))

    def open(self, token: str, scope: TokenScope) -> Position | None:
        """Return the position that a token was sealed with; None for an empty token, which requests the first page.

        Raises:
            InvalidPageToken: no accepted key sealed this token for this list, or it is not in canonical base64url.
        """
        if not token:
            return None
        sealed = _decode(token)
        for opener in self._openers:
            try:
                return _position(opener.decrypt(sealed, scope.associated_data))
            except InvalidTag:
                continue
        raise InvalidPageToken


def _position(plaintext: bytes) -> Position:
    """Parse and check a position: with the published key, anyone can seal any bytes."""
    created_at_us = int.from_bytes(plaintext[:_TIME_BYTES])
    backup_id = plaintext[_TIME_BYTES:].decode("ascii", errors="replace")
    if created_at_us > (TIME_MAX - TIME_MIN) // _MICROSECOND or not is_backup_id(backup_id):
        raise InvalidPageToken
    return Position(TIME_MIN + created_at_us * _MICROSECOND, backup_id)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(token: str) -> bytes:
    """Return the sealed bytes. Of the texts that base64 decodes to the same bytes, only the canonical one is accepted."""
    if not _SHAPE.fullmatch(token) or len(token) % 4 == 1:
        raise InvalidPageToken
    data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    if _encode(data) != token or data[:1] != _VERSION:
        raise InvalidPageToken
    return data[1:]


assert len(_encode(bytes(1 + 16 + _TIME_BYTES + ID_MAX_LENGTH))) == PAGE_TOKEN_MAX_LENGTH
