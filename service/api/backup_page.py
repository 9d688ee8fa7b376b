"""Responses of the methods that list backups, built from rows that are encoded already."""

from datetime import UTC

from service import pb
from service.backup import Page, Position
from service.page_token import PageTokens, TokenScope


def encoded_page(page: Page, page_tokens: PageTokens, scope: TokenScope) -> bytes:
    """Return a page as an encoded `ListBackupsResponse` or `ListClusterBackupsResponse`. Both have the same field numbers.

    Concatenated encodings are one message in protobuf, so only the last element is parsed, for the token.
    """
    if page.last is None:
        return bytes(page.elements)
    token = page_tokens.seal(_position(page.last), scope)
    return b"".join((page.elements, pb.ListBackupsResponse(next_page_token=token).SerializeToString()))


def encoded_backup(element: bytes) -> bytes:
    """Return an element without its tag and its length, a varint that ends at the first byte below 128."""
    length_end = next(index for index in range(1, len(element)) if element[index] < 0x80)
    return element[length_end + 1 :]


def _position(element: bytes) -> Position:
    backup = pb.Backup.FromString(encoded_backup(element))
    return Position(backup.created_at.ToDatetime(UTC), backup.id)
