"""Small files that commands read, such as a token, and errors of files."""

from pathlib import Path

from service.errors import CommandError


def read_small(path: Path, *, name: str, limit: int) -> bytes:
    """Return the content of a file.

    Raises:
        CommandError: the file cannot be read, or has more than `limit` bytes. The message contains the file's name, not its content.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except (OSError, ValueError) as exc:
        raise file_error(f"{name} {path}", exc) from None
    if len(content) > limit:
        raise CommandError(f"{name} {path}: the file has more than {limit} bytes")
    return content


def file_error(name: str, error: OSError | ValueError) -> CommandError:
    """Return the error of a command for a file that cannot be opened, read or written. ValueError means a null byte in its name."""
    return CommandError(f"{name}: {error.strerror if isinstance(error, OSError) else 'not a file name'}")
