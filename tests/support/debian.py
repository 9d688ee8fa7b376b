"""Programs that Debian packages install."""

import os
import shutil


def debian_program(name: str) -> str | None:
    """Return the path of a program, given its name or path; None if it is not installed. `PATH` need not contain the sbin directories."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")
