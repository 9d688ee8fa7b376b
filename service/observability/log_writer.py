"""A thread that writes the log, so that a log which is not read, or a slow disk, blocks no call."""

import os
import select
import threading
from collections.abc import Callable
from typing import TextIO

CAPACITY = 1024 * 1024
"""Characters that wait to be written: about four thousand lines of calls."""

_CLOSE_TIMEOUT_S = 1.0


class LogWriter:
    """A bounded buffer of lines, and the thread that writes them. Lines that do not fit or cannot be written are dropped."""

    def __init__(self, stream: TextIO, *, report: Callable[[int], str]) -> None:
        """Start the thread.

        Args:
            stream: gives the descriptor and the encoding. It is not closed.
            report: returns the line that reports a number of dropped lines. It is written once lines can be written again.
        """
        self.dropped = 0
        """Lines that were dropped since the start."""
        # Not the stream itself: the interpreter could not exit while a blocked thread holds the stream's lock.
        self._descriptor, self._encoding = stream.fileno(), stream.encoding
        self._report, self._reported = report, 0
        self._changed = threading.Condition()
        self._waiting: list[str] = []
        self._size = 0
        self._is_mid_line = self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        """Add complete lines, without waiting until they are written."""
        with self._changed:
            if self._size + len(text) > CAPACITY:
                self.dropped += text.count("\n")
                return
            self._waiting.append(text)
            self._size += len(text)
            self._changed.notify()

    def close(self) -> bool:
        """Wait a limited time for the thread to write the waiting lines. Return True if it has written them."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_TIMEOUT_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while text := self._next():
            lost = self._write_lines(text)
            with self._changed:
                self._size -= len(text)
                self.dropped += lost
                unreported = self.dropped - self._reported
            if unreported and not lost and not self._write_lines(self._report(unreported)):
                self._reported += unreported

    def _next(self) -> str:
        """Wait for lines and return them; the empty string if none wait and the writer is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            text, self._waiting = "".join(self._waiting), []
            return text

    def _write_lines(self, text: str) -> int:
        """Write lines, and return the number of lines that were not written completely."""
        data, written = text.encode(self._encoding, "backslashreplace"), 0
        try:
            if self._is_mid_line:  # the disk was full in the middle of the last line
                self._write(b"\n")
                self._is_mid_line = False
            while written < len(data):
                written += self._write(data[written:])
        except OSError:
            self._is_mid_line |= written > 0 and data[written - 1 : written] != b"\n"
            return data.count(b"\n", written)
        return 0

    def _write(self, data: bytes) -> int:
        """Write data, and return the number of bytes that were written.

        Raises:
            OSError: the disk is full, or the reader of the pipe has exited.
        """
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another process that shares the pipe has made it non-blocking
                select.select([], [self._descriptor], [])
