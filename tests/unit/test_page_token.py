"""Page tokens: accepted and rejected tokens, and golden values."""

import base64
import itertools
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from hypothesis import given
from hypothesis import strategies as st

from service.backup import Position
from service.errors import InvalidPageToken
from service.page_token import DEFAULT_KEY, PageTokens, TokenScope
from tests.support.page_tokens import cluster_scope, folder_scope

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KEY = bytes(range(32))
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_F = folder_scope("f")

positions = st.builds(
    Position,
    st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 31, 23, 59, 59, 999998), timezones=st.just(UTC)),  # noqa: DTZ001
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=50),
)
scopes = st.builds(
    lambda scope, parent_id: scope(parent_id),
    st.sampled_from([folder_scope, cluster_scope]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50),
)


@pytest.mark.parametrize(
    ("position", "scope", "key", "token"),
    [
        (Position(_EPOCH, "a"), _F, DEFAULT_KEY, "AXcO-G1ovnELGkJJjvg6_RYu2sqdc4NWyec"),
        (Position(_EPOCH, "a"), _F, _KEY, "AY9f8_wKQ_5idwiEcuwyTQtihhVXzPowEWY"),
        (Position(_EPOCH, "a"), cluster_scope("f"), _KEY, "ASYyb04NubALkJ2CvckFtqz7vBYPcU8hfsY"),
        (
            Position(datetime(2026, 11, 23, 20, 2, 11, 357020, tzinfo=UTC), "c9q3vd0k8m1nt5rj2hfe"),
            folder_scope("demo-folder"),
            DEFAULT_KEY,
            "AbgKUbFKVEtVUeXI2Jy186A4i0tV2xf2UME-Ophg5-MrFY2VprFTSRj9Jkmp",
        ),
        (
            Position(datetime(9999, 12, 31, 23, 59, 59, 999998, tzinfo=UTC), "~" * 50),
            folder_scope("папка"),
            _KEY,
            "AfXGCvsGtjMYJIL7vwAYZP-yyzQlZYhVOaImow2flkSvj-VJ5eu1_P6Z6G45qr01x61zGAPmN335_CnMiUM_LTXQVVym2mj7jJEh",
        ),
    ],
)
def test_golden(position: Position, scope: TokenScope, key: bytes, token: str) -> None:
    """Every release produces and accepts the same token for the same position, list and key."""
    assert PageTokens(key).seal(position, scope) == token
    assert PageTokens(key).open(token, scope) == position


@given(positions, scopes)
def test_round_trip(position: Position, scope: TokenScope) -> None:
    """Opening a sealed token returns its position, and the token has at most 100 characters."""
    token = PageTokens(_KEY).seal(position, scope)
    assert len(token) <= 100
    assert PageTokens(_KEY).open(token, scope) == position


def test_empty_token_is_the_first_page() -> None:
    """An empty token requests the first page."""
    assert PageTokens().open("", _F) is None


@given(st.sampled_from([1, 2, 3, 20, 41, 50]), st.data())
def test_any_flipped_bit_of_the_bytes(length: int, data: st.DataObject) -> None:
    """A token with one flipped bit in its decoded bytes is rejected."""
    token = PageTokens(_KEY).seal(Position(_EPOCH, "x" * length), _F)
    sealed = bytearray(base64.urlsafe_b64decode(token + "=="))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    _rejected(base64.urlsafe_b64encode(sealed).rstrip(b"=").decode(), key=_KEY)


@pytest.mark.parametrize("length", [1, 2, 3, 20, 41, 50])
def test_every_flipped_bit_of_the_characters(length: int) -> None:
    """A token with one flipped bit in its characters is rejected, even if base64 ignores that bit."""
    token = PageTokens(_KEY).seal(Position(_EPOCH, "x" * length), _F).encode()
    for index in range(len(token)):
        for bit in range(7):
            flipped = bytearray(token)
            flipped[index] ^= 1 << bit
            _rejected(flipped.decode(), key=_KEY)


@pytest.mark.parametrize("length", [1, 2, 3, 20, 41, 50])
def test_other_encodings_of_the_same_bytes(length: int) -> None:
    """A text that base64 decodes to the bytes of a token, but that differs from the token, is rejected."""
    token = PageTokens(_KEY).seal(Position(_EPOCH, "x" * length), _F)
    for junk in ("\n", " ", "!", "%", "=", "\u00e9", "\0"):
        for index in (0, len(token) // 2, len(token)):
            _rejected(token[:index] + junk + token[index:], key=_KEY)
    _rejected(token + "==", key=_KEY)
    for url_safe, standard in (("-", "+"), ("_", "/")):
        if url_safe in token:
            _rejected(token.replace(url_safe, standard), key=_KEY)
    for other in _ALPHABET:
        if other != token[-1]:
            _rejected(token[:-1] + other, key=_KEY)


@given(st.text(max_size=200).filter(bool))
def test_any_text(text: str) -> None:
    """Any text that was not issued as a token is rejected as an invalid page token."""
    _rejected(text)


@given(st.binary(max_size=100).filter(bool))
def test_any_bytes_in_base64(data: bytes) -> None:
    """Any bytes that were not sealed are rejected, even in the encoding of a token."""
    _rejected(base64.urlsafe_b64encode(b"\x01" + data).rstrip(b"=").decode())


@pytest.mark.parametrize("other", [folder_scope("f2"), cluster_scope("f1"), cluster_scope("f2")])
def test_another_list(other: TokenScope) -> None:
    """A token of one list is rejected for another folder, for a cluster, and for a cluster with the id of the folder."""
    _rejected(PageTokens().seal(Position(_EPOCH, "a"), folder_scope("f1")), scope=other)
    _rejected(PageTokens().seal(Position(_EPOCH, "a"), other), scope=folder_scope("f1"))


def test_another_version() -> None:
    """A token of an unknown version is rejected."""
    token = PageTokens().seal(Position(_EPOCH, "a"), _F)
    sealed = base64.urlsafe_b64decode(token + "=")
    _rejected(base64.urlsafe_b64encode(b"\x02" + sealed[1:]).rstrip(b"=").decode())


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,  # no id
        b"\xff" * 8 + b"a",  # long after the year 9999
        (253402300799999999).to_bytes(8) + b"a",  # the one microsecond that the table rejects
        b"\0" * 8 + b" ",
        b"\0" * 8 + b"\xff",
        b"\0" * 8 + b"a\0",
        b"\0" * 8 + b"x" * 51,
    ],
)
def test_sealed_by_a_client(plaintext: bytes) -> None:
    """The default key is public, so a position that a client sealed with it is checked like any other input."""
    sealed = AESSIV(DEFAULT_KEY).encrypt(plaintext, _F.associated_data) if plaintext else b"x" * 16
    _rejected(base64.urlsafe_b64encode(b"\x01" + sealed).rstrip(b"=").decode())


def test_key_rotation() -> None:
    """A key is replaced in three steps; in each, replicas of this step and of the one before accept each other's tokens."""
    steps = [
        PageTokens(),
        PageTokens(accepted=[_KEY]),
        PageTokens(_KEY, accepted=[DEFAULT_KEY]),
        PageTokens(_KEY),
    ]
    position = Position(_EPOCH + timedelta(days=1), "a")
    for before, after in itertools.pairwise(steps):
        for sealing, opening in ((before, after), (after, before)):
            assert opening.open(sealing.seal(position, _F), _F) == position
    _rejected(steps[0].seal(position, _F), key=_KEY)


def _rejected(token: str, *, scope: TokenScope = _F, key: bytes = DEFAULT_KEY) -> None:
    with pytest.raises(InvalidPageToken) as caught:
        PageTokens(key).open(token, scope)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]
