"""Incremental parsing of a JSON array of objects."""

import errno
import io
import json
import os
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.importers.json_array import JsonArray, NotAnArray

_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_objects = st.dictionaries(st.text(max_size=8), _values, max_size=4)


class Slow:
    """Stream that returns pieces of a fixed size, regardless of the requested size."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._data, self._piece = data, piece

    def read(self, size: int = -1) -> bytes:
        piece, self._data = self._data[: self._piece], self._data[self._piece :]
        return piece


@given(st.lists(_objects, max_size=5), st.sampled_from([None, 0, 4]), st.booleans(), st.integers(1, 20))
def test_same_objects_as_json_loads(objects: list[dict[str, Any]], indent: int | None, ascii_only: bool, piece: int) -> None:
    """The objects are those that json.loads returns, for any white space and any size of the pieces."""
    data = json.dumps(objects, indent=indent, ensure_ascii=ascii_only).encode() + b"\n"
    assert list(JsonArray(Slow(data, piece))) == objects


@given(st.lists(_objects, min_size=1, max_size=3), st.data())
def test_truncated_input(objects: list[dict[str, Any]], data: st.DataObject) -> None:
    """An input that is truncated before its last bracket gives only complete leading objects, and then an error."""
    whole = json.dumps(objects).encode()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    found: list[Any] = []
    with pytest.raises(NotAnArray) as caught:
        found.extend(JsonArray(Slow(cut, 7)))
    assert found == objects[: len(found)]
    assert caught.value.reason in ("ends early", "empty", "not UTF-8")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \n\t", "empty"),
        (b"null", "not an array"),
        (b'{"a":1}', "not an array"),
        (b"[1]", "not a JSON object"),
        (b"[{}", "ends early"),
        (b"[{},", "ends early"),
        (b"[{} {}]", "not JSON"),
        (b"[{},]", "not a JSON object"),
        (b'[{"a":}, {"b": 1}, {"c": 2}]', "not JSON"),
        (b"[{}]x", "more input follows the array"),
        (b"[{}][{}]", "more input follows the array"),
        (b'[{"a":NaN}]', "JSON that cannot be parsed (too deep, or a number that is too long or not finite)"),
        (b'[{"a":-Infinity}]', "JSON that cannot be parsed (too deep, or a number that is too long or not finite)"),
        (b'[{"a":' + b"9" * 5000 + b"}]", "JSON that cannot be parsed (too deep, or a number that is too long or not finite)"),
        (
            b'[{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}]",
            "JSON that cannot be parsed (too deep, or a number that is too long or not finite)",
        ),
        (b'[{"a":"\xff"}]', "not UTF-8"),
        (b'[{"a":"\xc3', "not UTF-8"),
    ],
)
def test_not_an_array_of_objects(data: bytes, reason: str) -> None:
    """Input that is not an array of objects raises an error with the reason."""
    with pytest.raises(NotAnArray) as caught:
        list(JsonArray(io.BytesIO(data)))
    assert caught.value.reason == reason


def test_byte_order_mark() -> None:
    """A byte order mark before the array is skipped."""
    assert list(JsonArray(io.BytesIO(b"\xef\xbb\xbf[{}]"))) == [{}]


def test_bounded_memory() -> None:
    """A long array on one line takes no more memory than a short one."""
    element = json.dumps({"Name": "x" * 400, "more": list(range(20))}).encode()

    class Generated:
        """Stream of an array with `count` elements, generated while it is read."""

        def __init__(self, count: int) -> None:
            self._left, self._start = count, b"["

        def read(self, size: int = -1) -> bytes:
            take = min(self._left, 100)
            self._left -= take
            start, self._start = self._start, b"," if take else b""
            return start + b",".join([element] * take) if take else start and b"]"

    tracemalloc.start()
    try:
        assert sum(1 for _ in JsonArray(Generated(20_000))) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # bytes, for about 10 million bytes of input
    finally:
        tracemalloc.stop()


def test_unterminated_element() -> None:
    """Reading of an unterminated element stops when it exceeds the limit."""

    class Endless:
        """Stream of an object with a string that does not end. It stops after 16 MiB, so that a reader without a limit fails."""

        def __init__(self) -> None:
            self._start = b'[{"a":"'
            self.returned = 0

        def read(self, size: int = -1) -> bytes:
            start, self._start = self._start, b""
            self.returned += size
            return start + b"x" * size if self.returned < 16 << 20 else b""

    endless = Endless()
    with pytest.raises(NotAnArray) as caught:
        list(JsonArray(endless))
    assert caught.value.reason == "an object of more than 1048576 characters, or not JSON"
    assert endless.returned < 1_200_000


@pytest.mark.parametrize("piece", [1_000, 1 << 22])
def test_longest_element(piece: int) -> None:
    """An element of exactly the limit is read, and one with another character is rejected, for any size of the pieces."""
    frame = len('{"a":""}')
    longest = '{"a":"' + "\u00e9" * ((1 << 20) - frame) + '"}'
    assert len(list(JsonArray(Slow(f"[{longest},{longest}]".encode(), piece)))) == 2
    with pytest.raises(NotAnArray, match="more than 1048576 characters"):
        list(JsonArray(Slow(f'[{longest[:-2]}x"}}]'.encode(), piece)))


def test_failing_disk() -> None:
    """An error of the operating system while reading is reported as an error of the input, not of the catalog."""

    class Failing:
        """Stream that returns one piece and then fails."""

        def __init__(self) -> None:
            self._pieces = [b'[{"a": 1},']

        def read(self, size: int, /) -> bytes:
            if not self._pieces:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return self._pieces.pop()

    with pytest.raises(NotAnArray, match="cannot be read: Input/output error"):
        list(JsonArray(Failing()))
