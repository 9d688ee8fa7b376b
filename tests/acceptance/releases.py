"""Other releases than this one: a copy of its code, altered."""

import shutil
from pathlib import Path

from tests.conftest import ROOT


def altered(folder: Path, changes: dict[str, tuple[str, str]]) -> Path:
    """A folder with this release's code, in which the text in each of these files has been replaced by another."""
    for part in ("service", "migrations"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, (old, new) in changes.items():
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} is expected to have once: {old}"
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    return folder
