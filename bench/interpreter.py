"""The CPython that the benchmark runs on. Only the standard library is used, because `make bench` selects it before packages are installed.

python bench/interpreter.py     prints the path of this CPython if it is optimized and new enough, or else exits with 1
"""

import sys
import sysconfig
from pathlib import Path


def is_optimized() -> bool:
    """Return True if this CPython was compiled with a profile (PGO), as Debian's and the official image's are, and pyenv's is not.

    Debian passes the profile's flags to make and not to configure, and removes them from sysconfig after the build.
    """
    configured = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return configured or not sysconfig.get_config_var("PGO_PROF_USE_FLAG")


def version() -> str:
    """Return the version of this CPython, and if it is optimized."""
    return f"CPython {'.'.join(map(str, sys.version_info[:3]))} ({'optimized' if is_optimized() else 'not an optimized'} build)"


if __name__ == "__main__":
    if sys.version_info < (3, 11) or not is_optimized():
        sys.exit(1)
    print(Path(sys.executable).resolve())
