"""Streaming reader of a JSON array of objects: memory is bounded by the largest allowed object, not by the array.

An object may have 1,048,576 characters, which take at most 40 MiB of memory while they are parsed. Python's own decoder parses them. It
rejects deep nesting, while event parsers with paths (ijson) need memory in proportion to the square of the depth.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Protocol

_CHUNK = 1 << 16  # bytes
_ELEMENT_MAX = 1 << 20  # characters
_LITERAL_MAX = 12  # characters of the longest literal or escape
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")


class Readable(Protocol):
    """Source of bytes. An empty result is the end of the input."""

    def read(self, size: int, /) -> bytes: ...


class NotAnArray(Exception):
    """The input is not a JSON array of objects."""

    def __init__(self, reason: str, *, elements: int, text: str, lines_before: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.elements = elements
        """Number of complete elements before the error."""
        self.text = text
        """The input around the error."""
        self.lines_before = lines_before
        """Number of lines before the text."""


class JsonArray:
    """Iterator over the elements of an array. Only white space, or a byte order mark, may precede and follow the array."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(parse_constant=_reject_constant)
        self._text, self._at = "", 0
        self._ended = False
        self._elements = 0
        self._lines_dropped = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Return the elements as they are read.

        Raises:
            NotAnArray: raised at the first character that cannot be part of such an array.
        """
        if self._next_character() != "[":
            raise self._error("empty" if self._finished() else "not an array")
        self._at += 1
        if self._next_character() == "]":
            self._at += 1
        else:
            yield from self._objects()
        if self._next_character():
            raise self._error("more input follows the array")

    def _objects(self) -> Iterator[dict[str, Any]]:
        separator = ","
        while separator == ",":
            yield self._object()
            self._elements += 1
            separator = self._next_character()
            if separator not in (",", "]"):
                raise self._error("ends early" if self._finished() else "not JSON")
            self._at += 1

    def _object(self) -> dict[str, Any]:
        if self._next_character() != "{":
            raise self._error("ends early" if self._finished() else "not a JSON object")
        size = _CHUNK
        while True:
            try:
                element, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as exc:
                self._check_length(len(self._text) - self._at)
                if not self._extend(size):
                    raise self._error("ends early" if self._is_truncated(exc) else "not JSON") from exc
                size *= 2  # a long element is parsed again each time: doubling keeps the total time linear
            except (RecursionError, ValueError) as exc:  # deep nesting; NaN; a number of thousands of digits
                raise self._error("JSON that cannot be parsed (too deep, or a number that is too long or not finite)") from exc
            else:
                self._check_length(end - self._at)
                self._at = end
                return element  # type: ignore[no-any-return]

    def _check_length(self, length: int) -> None:
        if length > _ELEMENT_MAX:
            raise self._error(f"an object of more than {_ELEMENT_MAX} characters, or not JSON")

    def _extend(self, size: int) -> bool:
        """Read at most `size` more bytes of the element, up to the first character over the limit. Return False at the end of the input."""
        target = min(len(self._text) - self._at + size, _ELEMENT_MAX + 1)
        grew = False
        while len(self._text) - self._at < target and self._read_more(target - (len(self._text) - self._at)):
            grew = True
        return grew

    def _is_truncated(self, exc: json.JSONDecodeError) -> bool:
        """Return True if the text seems to stop within an element."""
        return exc.msg.startswith("Unterminated string") or len(self._text.rstrip()) - exc.pos < _LITERAL_MAX

    def _next_character(self) -> str:
        """Return the next character that is not white space, without consuming it, or an empty string at the end."""
        while True:
            self._at = _WHITE_SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more(_CHUNK):
                return ""

    def _finished(self) -> bool:
        return self._ended and self._at >= len(self._text)

    def _read_more(self, size: int) -> bool:
        """Read the next bytes and drop the consumed text. Return False at the end of the input."""
        if self._ended:
            return False
        try:
            chunk = self._stream.read(size)
        except OSError as exc:
            raise self._error(f"the input cannot be read: {exc.strerror}") from exc
        self._ended = not chunk
        try:
            more = self._utf8.decode(chunk, final=self._ended)
        except UnicodeDecodeError as exc:
            raise self._error("not UTF-8") from exc
        self._lines_dropped += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + more, 0
        return True

    def _error(self, reason: str) -> NotAnArray:
        return NotAnArray(reason, elements=self._elements, text=self._text, lines_before=self._lines_dropped)


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
