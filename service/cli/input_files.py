"""Small files that commands read: a token, certificates."""

from pathlib import Path

from service.errors import CommandError


def read_small(path: Path, *, name: str, limit: int) -> bytes:
    """Return the content of a file.

    Raises:
        CommandError: The file cannot be read, or has more than `limit` bytes. The message contains the file's name, not its content.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except (OSError, ValueError) as exc:  # ValueError: a null byte in the name
        raise CommandError(f"{name} {path}: {exc.strerror if isinstance(exc, OSError) else 'not a file name'}") from None
    if len(content) > limit:
        raise CommandError(f"{name} {path}: the file has more than {limit} bytes")
    return content
