"""Programs that Debian packages install."""

import os
import shutil


def debian_program(name: str) -> str | None:
    """Where a program of a Debian package is: by its path, or by its name on the PATH or among the system's own."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")
