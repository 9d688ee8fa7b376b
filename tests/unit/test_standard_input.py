"""Standard input of imports: closed, interrupted, or impossible to copy."""

import io
import resource
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from service.cli.imports import commands
from service.cli.imports.copied_input import STANDARD_INPUT, file_or_copy
from service.errors import CommandError


@pytest.fixture(name="standard_input")
def _standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let standard input be a file of 64 KiB."""
    file = tmp_path / "input"
    file.write_bytes(b"x" * 65536)
    with file.open(encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        yield


def test_closed_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import without a file fails with advice if the command was started with standard input closed."""
    monkeypatch.setattr("sys.stdin", None)  # as Python sets it
    with pytest.raises(CommandError, match="^standard input is closed: name the file$"), file_or_copy(STANDARD_INPUT):
        pass
    with pytest.raises(CommandError, match="^standard input is closed: name the file of the listing$"), commands._reading(None):
        pass


def test_interrupted_read() -> None:
    """Ctrl-C during a read ends it immediately, and the previous handler is restored afterwards."""

    class Interrupted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            signal.raise_signal(signal.SIGINT)
            return b"the rest"

    previous = signal.getsignal(signal.SIGINT)
    with pytest.raises(typer.Abort):
        commands._InterruptibleInput(Interrupted()).read()
    assert signal.getsignal(signal.SIGINT) is previous


@pytest.mark.usefixtures("standard_input")
def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If no temporary folder can be created, the error has the cause and advises to set TMPDIR."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(CommandError, match=r"^standard input cannot be copied: No such file or directory\. Set TMPDIR"):
        with file_or_copy(STANDARD_INPUT):
            pass


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    """Let writes of this process beyond `size` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("standard_input")
def test_copy_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If standard input cannot be copied in full, the error has the folder and the cause, and nothing of the copy is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(CommandError, match=rf"^standard input cannot be copied to {folder}/\S+: File too large\. Set TMPDIR"):
        with _file_size_limit(1000), file_or_copy(STANDARD_INPUT):
            pass
    assert list(folder.iterdir()) == []
