"""Page tokens: what opens, what does not, and that they stay what they are."""

import base64
import itertools
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from hypothesis import given
from hypothesis import strategies as st

from service.backup import Position
from service.errors import InvalidPageToken
from service.page_token import DEFAULT_KEY, PageTokens

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KEY, _OTHER_KEY = bytes(range(32)), bytes(range(32, 64))
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

positions = st.builds(
    Position,
    st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 31, 23, 59, 59, 999998), timezones=st.just(UTC)),  # noqa: DTZ001
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=50),
)
folder_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)


@pytest.mark.parametrize(
    ("position", "folder_id", "key", "token"),
    [
        (Position(_EPOCH, "a"), "f", DEFAULT_KEY, "AXcO-G1ovnELGkJJjvg6_RYu2sqdc4NWyec"),
        (Position(_EPOCH, "a"), "f", _KEY, "AY9f8_wKQ_5idwiEcuwyTQtihhVXzPowEWY"),
        (
            Position(datetime(2026, 11, 23, 20, 2, 11, 357020, tzinfo=UTC), "c9q3vd0k8m1nt5rj2hfe"),
            "demo-folder",
            DEFAULT_KEY,
            "AbgKUbFKVEtVUeXI2Jy186A4i0tV2xf2UME-Ophg5-MrFY2VprFTSRj9Jkmp",
        ),
        (
            Position(datetime(9999, 12, 31, 23, 59, 59, 999998, tzinfo=UTC), "~" * 50),
            "папка",
            _KEY,
            "AfXGCvsGtjMYJIL7vwAYZP-yyzQlZYhVOaImow2flkSvj-VJ5eu1_P6Z6G45qr01x61zGAPmN335_CnMiUM_LTXQVVym2mj7jJEh",
        ),
    ],
)
def test_golden(position: Position, folder_id: str, key: bytes, token: str) -> None:
    """Tokens given out by one release are those of every other."""
    assert PageTokens(key).seal(position, folder_id=folder_id) == token
    assert PageTokens(key).open(token, folder_id=folder_id) == position


@given(positions, folder_ids)
def test_what_is_sealed_opens(position: Position, folder_id: str) -> None:
    """Every position survives, in a token of at most 100 characters."""
    token = PageTokens(_KEY).seal(position, folder_id=folder_id)
    assert len(token) <= 100
    assert PageTokens(_KEY).open(token, folder_id=folder_id) == position


def test_no_token_is_the_first_page() -> None:
    """An empty token asks for the first page."""
    assert PageTokens().open("", folder_id="f") is None


@given(st.sampled_from([1, 2, 3, 20, 41, 50]), st.data())
def test_any_single_bit_flipped(length: int, data: st.DataObject) -> None:
    """A token with any one bit of its bytes flipped is refused."""
    token = PageTokens(_KEY).seal(Position(_EPOCH, "x" * length), folder_id="f")
    sealed = bytearray(base64.urlsafe_b64decode(token + "=="))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    _refused(base64.urlsafe_b64encode(sealed).rstrip(b"=").decode(), key=_KEY)


@pytest.mark.parametrize("length", [1, 2, 3, 20, 41, 50])
def test_every_bit_of_every_character(length: int) -> None:
    """A token with any one bit of its characters flipped is refused: also where base64 ignores that bit."""
    token = PageTokens(_KEY).seal(Position(_EPOCH, "x" * length), folder_id="f").encode()
    for index in range(len(token)):
        for bit in range(7):
            flipped = bytearray(token)
            flipped[index] ^= 1 << bit
            _refused(flipped.decode(), key=_KEY)


@pytest.mark.parametrize("length", [1, 2, 3, 20, 41, 50])
def test_other_spellings(length: int) -> None:
    """What base64 decodes to the same bytes, but is spelled differently, is refused."""
    token = PageTokens(_KEY).seal(Position(_EPOCH, "x" * length), folder_id="f")
    for junk in ("\n", " ", "!", "%", "=", "\u00e9", "\0"):
        for index in (0, len(token) // 2, len(token)):
            _refused(token[:index] + junk + token[index:], key=_KEY)
    _refused(token + "==", key=_KEY)
    for url_safe, standard in (("-", "+"), ("_", "/")):
        if url_safe in token:
            _refused(token.replace(url_safe, standard), key=_KEY)
    for other in _ALPHABET:
        if other != token[-1]:
            _refused(token[:-1] + other, key=_KEY)


@given(st.text(max_size=200).filter(bool))
def test_any_text(text: str) -> None:
    """No text that was not given out opens, and none does anything but be refused."""
    _refused(text)


@given(st.binary(max_size=100).filter(bool))
def test_any_bytes_in_base64(data: bytes) -> None:
    """Nor do any bytes in the right alphabet."""
    _refused(base64.urlsafe_b64encode(b"\x01" + data).rstrip(b"=").decode())


def test_another_folder() -> None:
    """A token of one folder is refused for another."""
    token = PageTokens().seal(Position(_EPOCH, "a"), folder_id="f1")
    _refused(token, folder_id="f2")


def test_another_version() -> None:
    """A token of an unknown version is refused."""
    token = PageTokens().seal(Position(_EPOCH, "a"), folder_id="f")
    sealed = base64.urlsafe_b64decode(token + "=")
    _refused(base64.urlsafe_b64encode(b"\x02" + sealed[1:]).rstrip(b"=").decode())


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,  # no id
        b"\xff" * 8 + b"a",  # far after year 9999
        (253402300799999999).to_bytes(8) + b"a",  # the one microsecond that the table refuses
        b"\0" * 8 + b" ",
        b"\0" * 8 + b"\xff",
        b"\0" * 8 + b"a\0",
        b"\0" * 8 + b"x" * 51,
    ],
)
def test_sealed_by_a_stranger(plaintext: bytes) -> None:
    """The default key is published: what anybody seals with it is checked like any other input."""
    method = b"/yandex.cloud.mdb.greenplum.v1.BackupService/List"
    sealed = AESSIV(DEFAULT_KEY).encrypt(plaintext, [method, b"f"]) if plaintext else b"x" * 16
    _refused(base64.urlsafe_b64encode(b"\x01" + sealed).rstrip(b"=").decode())


def test_rotation() -> None:
    """A key is replaced in three steps, and at each every replica opens what any replica of the step before or after seals."""
    steps = [
        PageTokens(),
        PageTokens(accepted=[_KEY]),
        PageTokens(_KEY, accepted=[DEFAULT_KEY]),
        PageTokens(_KEY),
    ]
    position = Position(_EPOCH + timedelta(days=1), "a")
    for before, after in itertools.pairwise(steps):
        for sealing, opening in ((before, after), (after, before)):
            assert opening.open(sealing.seal(position, folder_id="f"), folder_id="f") == position
    _refused(steps[0].seal(position, folder_id="f"), key=_KEY)


def _refused(token: str, *, folder_id: str = "f", key: bytes = DEFAULT_KEY) -> None:
    with pytest.raises(InvalidPageToken) as caught:
        PageTokens(key).open(token, folder_id=folder_id)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]
