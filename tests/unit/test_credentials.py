"""Bearer tokens of the client commands."""

from pathlib import Path

import pytest

from service.cli.client.credentials import TOKEN_VARIABLE, token_reader
from service.errors import CommandError

_BAD = [
    (b"", "is empty"),
    (b" \n", "is empty"),
    (b"hunter2\nhunter3", "does not contain one bearer token"),
    (b"Bearer hunter2", 'without the word "Bearer"'),
    (b"hunter2\xc3\xa9", "does not contain one bearer token"),
    (b"hunter2\0", "does not contain one bearer token"),
    (b"hunter2" * 10_000, "16384"),
]


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    return file


def test_white_space_around_a_token(file: Path) -> None:
    """White space around a token is not part of it."""
    file.write_text(" \t hunter2\r\n\n")
    assert token_reader(file)() == "hunter2"


@pytest.mark.parametrize(("content", "message"), [*_BAD, (b"hunter2\xff", "does not contain one bearer token")])
def test_files_without_a_token(file: Path, content: bytes, message: str) -> None:
    """The error for a file without exactly one token contains the file's name and not its content."""
    file.write_bytes(content)
    with pytest.raises(CommandError, match=message) as caught:
        token_reader(file)()
    assert str(caught.value).startswith(f"token file {file}")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("content", "message"), [each for each in _BAD if each[0] and b"\0" not in each[0]])
def test_a_variable_without_a_token(monkeypatch: pytest.MonkeyPatch, content: bytes, message: str) -> None:
    """The error for a variable without exactly one token contains its name and not its value."""
    monkeypatch.setenv(TOKEN_VARIABLE, content.decode())
    with pytest.raises(CommandError, match=message) as caught:
        token_reader(None)()
    assert str(caught.value).startswith("BACKUPS_TOKEN ")
    assert "hunter2" not in str(caught.value)


def test_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is no file and the variable is absent or empty, no token is sent."""
    assert token_reader(None)() is None
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    assert token_reader(None)() is None


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """The error for a file that is absent, endless or a folder contains its name."""
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory"), (Path("/dev/zero"), "more than")):
        with pytest.raises(CommandError, match=f"^token file {path}: .*{reason}"):
            token_reader(path)()


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o440])
def test_a_protected_file(file: Path, capsys: pytest.CaptureFixture[str], mode: int) -> None:
    """A file that is readable by its owner, or by a group too, gives no warning."""
    file.write_text("hunter2")
    file.chmod(mode)
    assert token_reader(file)() == "hunter2"
    assert capsys.readouterr().err == ""
