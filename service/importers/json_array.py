"""Streaming reader of a JSON array of objects: memory is bounded by the largest allowed object, not by the array.

An object may have 1 MiB characters, which take at most 40 MiB of memory while they are parsed. Python's own decoder does the parsing. It
rejects deep nesting, while event parsers with paths (ijson) take memory by the square of the depth.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Protocol

_CHUNK = 1 << 16  # bytes
_ELEMENT_MAX = 1 << 20  # characters
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")


class Readable(Protocol):
    """What bytes come from; an empty piece is the end."""

    def read(self, size: int, /) -> bytes: ...


class NotAnArray(Exception):
    """The input is no JSON array of objects."""

    def __init__(self, reason: str, *, elements: int, text: str, lines_before: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.elements = elements
        """How many elements came before the trouble."""
        self.text = text
        """What stands around the trouble."""
        self.lines_before = lines_before
        """How many lines stand before the text."""


class JsonArray:
    """Iterates over the elements. What precedes and follows the array must be white space (or a byte order mark)."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(parse_constant=_refuse_constant)
        self._text, self._at = "", 0
        self._ended = False
        self._elements = 0
        self._lines_dropped = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """
        Raises:
            NotAnArray: as soon as the input shows it.
        """
        if self._next() != "[":
            raise self._trouble("empty" if self._finished() else "no array")
        self._at += 1
        if self._next() == "]":
            self._at += 1
        else:
            yield from self._objects()
        if self._next():
            raise self._trouble("something follows the array")

    def _objects(self) -> Iterator[dict[str, Any]]:
        separator = ","
        while separator == ",":
            yield self._object()
            self._elements += 1
            separator = self._next()
            if separator not in (",", "]"):
                raise self._trouble("ends early" if self._finished() else "no JSON")
            self._at += 1

    def _object(self) -> dict[str, Any]:
        if self._next() != "{":
            raise self._trouble("ends early" if self._finished() else "no JSON object")
        size = _CHUNK
        while True:
            try:
                element, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as exc:
                self._check_length(len(self._text) - self._at)
                if not self._grow(size):
                    raise self._trouble("ends early" if self._is_cut(exc) else "no JSON") from exc
                size *= 2  # so that the time for a long element, which is parsed again each time, stays linear
            except (RecursionError, ValueError) as exc:  # deep nesting; NaN; a number of thousands of digits
                raise self._trouble("no JSON of a reasonable kind") from exc
            else:
                self._check_length(end - self._at)
                self._at = end
                return element  # type: ignore[no-any-return]

    def _check_length(self, length: int) -> None:
        if length > _ELEMENT_MAX:
            raise self._trouble(f"an object of more than {_ELEMENT_MAX} characters, or no JSON")

    def _grow(self, size: int) -> bool:
        """Read `size` more bytes of the element, but no more than show that it is too long. Return False at the end of the input."""
        wanted = min(len(self._text) - self._at + size, _ELEMENT_MAX + 1)
        more = False
        while len(self._text) - self._at < wanted and self._more(wanted - (len(self._text) - self._at)):
            more = True
        return more

    def _is_cut(self, exc: json.JSONDecodeError) -> bool:
        """Whether the text seems to stop in the middle of something: a literal or an escape has at most 12 characters."""
        return exc.msg.startswith("Unterminated string") or len(self._text.rstrip()) - exc.pos < 12

    def _next(self) -> str:
        """The next character that is not white space, not consumed; empty at the end."""
        while True:
            self._at = _WHITE_SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_CHUNK):
                return ""

    def _finished(self) -> bool:
        return self._ended and self._at >= len(self._text)

    def _more(self, size: int) -> bool:
        """Reads on, and drops what was consumed; False at the end."""
        if self._ended:
            return False
        try:
            chunk = self._stream.read(size)
        except OSError as exc:
            raise self._trouble(f"it cannot be read: {exc.strerror}") from exc
        self._ended = not chunk
        try:
            more = self._utf8.decode(chunk, final=self._ended)
        except UnicodeDecodeError as exc:
            raise self._trouble("no UTF-8") from exc
        self._lines_dropped += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + more, 0
        return True

    def _trouble(self, reason: str) -> NotAnArray:
        return NotAnArray(reason, elements=self._elements, text=self._text, lines_before=self._lines_dropped)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
