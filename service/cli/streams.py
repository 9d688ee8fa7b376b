"""Standard streams that are closed, full, or in an encoding that lacks characters."""

import contextlib
import errno
import io
import os
import sys

_ERRORS = "backslashreplace"  # the encoding of a locale may lack a character of an id
_OUTPUT_ERRORS = {errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPIPE}


class _StandardError(io.TextIOWrapper):
    """Standard error that ignores write errors: a full disk must change neither the work nor the exit status of a command."""

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def prepare() -> None:
    """Make the standard streams usable, even if the command was started with closed ones.

    Closed descriptors are opened on /dev/null. Otherwise a socket could get the number of a closed stream, and error messages would be sent
    to it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_ERRORS)
    else:  # Python has set it to None
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # lives as long as the process
    if isinstance(sys.stderr, io.TextIOWrapper):
        encoding = sys.stderr.encoding
        sys.stderr = _StandardError(sys.stderr.detach(), encoding=encoding, errors=_ERRORS, line_buffering=True)
    else:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def is_output_error(error: OSError) -> bool:
    """Return True if an error is one of standard output; errors of files have a name, and those of sockets are translated."""
    return error.filename is None and error.errno in _OUTPUT_ERRORS


def discard_output() -> None:
    """Connect standard output to /dev/null, so that buffered output does not fail again when the interpreter exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stdout.flush()


def report_output_error(error: OSError) -> None:
    """Print the error, unless the reader of a pipe has exited, as `head` does."""
    if error.errno != errno.EPIPE:
        print(f"backup-service: standard output: {error.strerror}", file=sys.stderr)
