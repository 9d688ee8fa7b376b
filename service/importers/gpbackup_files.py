"""The size of a local backup of gpbackup: the sum of its files, if this machine can reach all of them.

Below the directory of `gpbackup --backup-dir`, each content has its own directory: -1 for the coordinator, and 0 to n - 1 for the primaries
(filepath/filepath.go: `<prefix><content>/backups/<date>/<timestamp>`). With --single-backup-dir, all share one directory. Often each host
has only some of the directories. Their sum would be a wrong size, so the size is then unknown.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r".*\d", re.ASCII | re.DOTALL)  # of a content's directory


class Files(NamedTuple):
    """The backup whose files are searched."""

    timestamp: str
    """14 digits."""
    segments: int
    """Primaries."""
    has_data: bool
    """True if the primaries have files."""

    @property
    def relative_path(self) -> Path:
        return Path("backups", self.timestamp[:8], self.timestamp)


def local_size(backup_dir: Path, files: Files) -> int | str:
    """Return the size in bytes, or the reason why it is unknown."""
    try:
        if (shared := backup_dir / files.relative_path).is_dir():
            return _size_of_shared_directory(shared, files)
        return _size_of_separate_directories(backup_dir, files)
    except OSError as exc:
        return f"its files cannot be read ({exc.strerror})"


def _size_of_separate_directories(backup_dir: Path, files: Files) -> int | str:
    names = [each.name for each in os.scandir(backup_dir) if _NAME.fullmatch(each.name) and Path(each, files.relative_path).is_dir()]
    prefixes = [name.removesuffix("-1") for name in names if name.endswith("-1")]
    if len(prefixes) > 1:
        return f"several clusters have a backup of this time in {backup_dir}"
    reachable = [name for name in names if not prefixes or _is_directory_of(name, prefixes[0], files.segments)]
    if not prefixes or len(reachable) <= files.segments:
        return f"{min(len(reachable), files.segments)} of {files.segments + 1} directories reachable"
    return sum(_total_size(backup_dir / name / files.relative_path) for name in reachable)


def _is_directory_of(name: str, prefix: str, segments: int) -> bool:
    content = name.removeprefix(prefix)
    return content == "-1" or (content.isdigit() and int(content) < segments and name == f"{prefix}{int(content)}")


def _size_of_shared_directory(shared: Path, files: Files) -> int | str:
    """Return the size of a directory that all contents share, or the reason why it is unknown.

    Hosts may have separate directories of this name. A shared directory has files of every primary.
    """
    named = re.compile(rf"gpbackup_(\d+)_{files.timestamp}\D.*|gpbackup_(\d+)_{files.timestamp}", re.ASCII)
    matches = (named.fullmatch(each.name) for each in os.scandir(shared))
    contents = {int(match[1] or match[2]) for match in matches if match}
    found = sum(content < files.segments for content in contents)
    if files.has_data and found < files.segments:
        return f"files of {found} of {files.segments} segments reachable"
    return _total_size(shared)


def _total_size(directory: Path) -> int:
    total = 0
    with os.scandir(directory) as found:
        for each in found:
            if each.is_file(follow_symlinks=False):
                total += each.stat(follow_symlinks=False).st_size
    return total
