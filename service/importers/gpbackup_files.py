"""The size of a local backup of gpbackup: the sum of its files, where this machine can reach all of them.

Under what `gpbackup --backup-dir` names, each content has a directory: -1, the coordinator, and 0 to n - 1, the primaries
(filepath/filepath.go: `<prefix><content>/backups/<date>/<timestamp>`); with --single-backup-dir all share one. Often they are on
many hosts: one then sees a part, and a part's sum would be a wrong size.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r".*\d", re.ASCII | re.DOTALL)  # of a content's directory


class Files(NamedTuple):
    """Which files are to be found."""

    timestamp: str
    """14 digits."""
    segments: int
    """Primaries."""
    has_data: bool
    """True if the primaries have files."""

    @property
    def place(self) -> Path:
        return Path("backups", self.timestamp[:8], self.timestamp)


def local_size(backup_dir: Path, files: Files) -> int | str:
    """Return the size in bytes, or the reason why it is unknown."""
    try:
        if (shared := backup_dir / files.place).is_dir():
            return _of_shared(shared, files)
        return _of_contents(backup_dir, files)
    except OSError as exc:
        return f"its files cannot be read ({exc.strerror})"


def _of_contents(backup_dir: Path, files: Files) -> int | str:
    names = [each.name for each in os.scandir(backup_dir) if _NAME.fullmatch(each.name) and Path(each, files.place).is_dir()]
    prefixes = [name.removesuffix("-1") for name in names if name.endswith("-1")]
    if len(prefixes) > 1:
        return f"several clusters have a backup of this time in {backup_dir}"
    reachable = [name for name in names if not prefixes or _is_of(name, prefixes[0], files.segments)]
    if not prefixes or len(reachable) <= files.segments:
        return f"{min(len(reachable), files.segments)} of {files.segments + 1} directories reachable"
    return sum(_sum(backup_dir / name / files.place) for name in reachable)


def _is_of(name: str, prefix: str, segments: int) -> bool:
    content = name.removeprefix(prefix)
    return content == "-1" or (content.isdigit() and int(content) < segments and name == f"{prefix}{int(content)}")


def _of_shared(shared: Path, files: Files) -> int | str:
    """Each host may have a directory of this name: that this one is shared shows by the files of every primary."""
    named = re.compile(rf"gpbackup_(\d+)_{files.timestamp}\D.*|gpbackup_(\d+)_{files.timestamp}", re.ASCII)
    matches = (named.fullmatch(each.name) for each in os.scandir(shared))
    contents = {int(match[1] or match[2]) for match in matches if match}
    found = sum(content < files.segments for content in contents)
    if files.has_data and found < files.segments:
        return f"files of {found} of {files.segments} segments reachable"
    return _sum(shared)


def _sum(directory: Path) -> int:
    total = 0
    with os.scandir(directory) as found:
        for each in found:
            if each.is_file(follow_symlinks=False):
                total += each.stat(follow_symlinks=False).st_size
    return total
