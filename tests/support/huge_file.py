"""A file that is larger than any limit."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def huge_file(folder: Path) -> Iterator[Path]:
    """Create a sparse file of 1 TiB with mode 0600, and remove it: a copy of the folder would need the whole size on the disk."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.truncate(1 << 40)
        yield Path(file.name)
