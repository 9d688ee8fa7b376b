"""Altered copies of this release's code, such as the next release or one without a protection."""

import shutil
from pathlib import Path
from typing import NamedTuple

from tests.support.repository import ROOT


class Change(NamedTuple):
    """A text that occurs once in a file, and its replacement."""

    file: str
    old: str
    new: str


def altered(folder: Path, *changes: Change) -> Path:
    """Copy this release's code to `folder`, apply the changes, and return the folder."""
    for part in ("service", "migrations"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for change in changes:
        file = folder / change.file
        text = file.read_text(encoding="utf-8")
        assert text.count(change.old) == 1, f"{change.file} must contain this text once: {change.old}"
        file.write_text(text.replace(change.old, change.new), encoding="utf-8")
    return folder
