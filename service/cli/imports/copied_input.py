"""Private copy of standard input, for importers that require a file."""

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from service.cli.signals import aborted_by
from service.errors import CommandError

STANDARD_INPUT = Path("-")
COPY_MAX = 256 << 20  # bytes; a history of 200,000 backups is smaller
_BLOCK = 64 << 10  # bytes
_NAME = "standard input"


@contextlib.contextmanager
def file_or_copy(path: Path) -> Iterator[Path]:
    """Yield `path`, or for `-` a copy of standard input that only this user can read; delete the copy afterwards, even on SIGTERM.

    Raises:
        CommandError: standard input is closed, has more than `COPY_MAX` bytes, or cannot be copied.
    """
    if path != STANDARD_INPUT:
        yield path
        return
    if sys.stdin is None:  # started with standard input closed
        raise CommandError("standard input is closed: name the file")
    with aborted_by(signal.SIGINT, signal.SIGTERM, signal.SIGHUP), _temporary_folder() as folder:
        copy = folder / _NAME
        _copy(sys.stdin.buffer, copy)
        try:
            yield copy
        except CommandError as exc:  # its message contains the path of the copy
            raise type(exc)(str(exc).replace(str(copy), _NAME)) from exc


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="backup-service-")  # mode 0700
    except OSError as exc:
        raise CommandError(f"standard input cannot be copied: {exc.strerror}. Set TMPDIR to a folder with space.") from exc
    with folder as name:
        yield Path(name)


def _copy(source: BinaryIO, target: Path) -> None:
    size = 0
    try:
        with target.open("xb") as copy:
            while block := source.read(_BLOCK):
                size += len(block)
                if size > COPY_MAX:
                    raise CommandError(
                        f"standard input has more than {COPY_MAX >> 20} MiB: import the file by its path. Nothing was imported."
                    )
                copy.write(block)
    except OSError as exc:
        raise CommandError(
            f"standard input cannot be copied to {target.parent}: {exc.strerror}. Set TMPDIR to a folder with space."
        ) from exc
