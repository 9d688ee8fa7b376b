"""Other releases than this one: a copy of its code, altered."""

import shutil
from pathlib import Path
from typing import NamedTuple

from tests.support.repository import ROOT


class Change(NamedTuple):
    """A text in a file, which has it once, and what stands there instead."""

    file: str
    old: str
    new: str


def altered(folder: Path, *changes: Change) -> Path:
    """A folder with this release's code, and these changes."""
    for part in ("service", "migrations"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for change in changes:
        file = folder / change.file
        text = file.read_text(encoding="utf-8")
        assert text.count(change.old) == 1, f"{change.file} is expected to have once: {change.old}"
        file.write_text(text.replace(change.old, change.new), encoding="utf-8")
    return folder
