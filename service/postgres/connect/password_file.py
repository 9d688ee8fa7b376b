"""Password files in libpq's format (https://www.postgresql.org/docs/current/libpq-pgpass.html), read for every connection.

Unlike libpq and asyncpg, this accepts a file that its group may read: Kubernetes' `fsGroup` makes every mounted secret such a file.
"""

import re
import stat
from pathlib import Path

from service.database_url import Host
from service.errors import ConnectFailed

_MAX_BYTES = 256 * 1024
_FIELD = re.compile(r"((?:\\.|[^:])*)(?::|$)")
_ESCAPED = re.compile(r"\\(.)")


def read_password(file: Path, host: Host, *, database: str, user: str) -> str | None:
    """Return the password of the first line that matches, or None.

    Raises:
        ConnectFailed: the file cannot be read, is not a regular file, is too large, or users outside of its group may read it.
    """
    check_private(file)
    text = _read(file).decode("utf-8", errors="surrogateescape")
    names = (host.name, "localhost") if host.is_socket else (host.name,)
    for line in text.replace("\r\n", "\n").split("\n"):  # not splitlines(), which splits at more characters than libpq
        fields = _FIELD.findall(line)
        if line.startswith("#") or len(fields) < 5:
            continue
        wanted = (names, (str(host.port),), (database,), (user,))
        if all(raw == "*" or _unescaped(raw) in values for raw, values in zip(fields[:4], wanted, strict=True)):
            return _unescaped(fields[4])
    return None


def _read(file: Path) -> bytes:
    if not file.is_file():  # a named pipe would block the process
        raise ConnectFailed(f"the password file {file} is not a regular file")
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
    except OSError as exc:
        raise ConnectFailed(f"the password file {file} cannot be read: {exc.strerror}") from exc
    if len(data) > _MAX_BYTES:
        raise ConnectFailed(f"the password file {file} has more than {_MAX_BYTES} bytes")
    return data


def check_private(file: Path) -> None:
    """Check that users outside the file's group have no access.

    Raises:
        ConnectFailed: other users have access, or the file cannot be found.
    """
    try:
        mode = file.stat().st_mode
    except OSError as exc:
        raise ConnectFailed(f"{file} cannot be read: {exc.strerror}") from exc
    if mode & stat.S_IRWXO:
        raise ConnectFailed(f"{file} is accessible to all users: chmod o= {file}")


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)
