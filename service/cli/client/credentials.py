"""The bearer token of the client commands. It is never an argument: every user of a machine can see the arguments of its processes."""

import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from service.cli.formatting import printable
from service.cli.input_files import read_small
from service.errors import CommandError

TOKEN_VARIABLE = "BACKUPS_TOKEN"  # noqa: S105  # a name
_TOKEN = re.compile(r"[!-~]+")
_TOKEN_MAX_LENGTH = 16 << 10  # bytes; the longest header that gRPC accepts

ReadToken = Callable[[], str | None]


def token_reader(token_file: Path | None) -> ReadToken:
    """Return a function that reads the token for the next call from the file, or from BACKUPS_TOKEN. It returns None if neither is set."""
    return TokenFile(token_file).read if token_file else _token_of_environment


def _token_of_environment() -> str | None:
    text = os.environ.get(TOKEN_VARIABLE)
    return _checked(text, TOKEN_VARIABLE) if text else None


class TokenFile:
    """A file with a token, read for every call, because issuers replace tokens before they expire."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._from_pipe: str | None = None
        self._has_warned = False

    def read(self) -> str:
        """Return the token without surrounding white space.

        Raises:
            CommandError: the file cannot be read, or does not contain a token. The message does not contain the file's content.
        """
        if self._from_pipe is not None:
            return self._from_pipe
        data = read_small(self._path, name="token file", limit=_TOKEN_MAX_LENGTH)
        token = _checked(data.decode("latin-1"), f"token file {self._path}")
        mode = self._mode()
        if not stat.S_ISREG(mode):
            self._from_pipe = token  # a pipe, such as bash's <(command), can be read once
        elif mode & stat.S_IROTH and not self._has_warned:
            self._has_warned = True
            warning = f"token file {printable(str(self._path))} is readable by every user of this machine: chmod 600 protects it"
            print("backup-service: warning:", warning, file=sys.stderr)
        return token

    def _mode(self) -> int:
        try:
            return self._path.stat().st_mode
        except OSError:  # pragma: no cover: the file was removed after it was read
            return 0


def _checked(text: str, source: str) -> str:
    token = text.strip()
    if not token:
        raise CommandError(f"{source} is empty: it must contain a bearer token")
    if len(token) > _TOKEN_MAX_LENGTH or not _TOKEN.fullmatch(token):
        raise CommandError(
            f"{source} does not contain one bearer token: at most {_TOKEN_MAX_LENGTH} printable ASCII characters on one line, "
            'without spaces and without the word "Bearer"'
        )
    return token
