"""The CPython that `make bench` runs on. Only the standard library is used, because a candidate has no packages.

python bench/interpreter.py     prints the path of the newest optimized CPython of the machine, or else of the newest one
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

_OLDEST = (3, 11)
_NAMES = ("python3.14", "python3.13", "python3.12", "python3.11", "python3", "python")
_DESCRIBE = "--describe"

# True if the build is optimized, its version and its path.
Description = tuple[bool, tuple[int, ...], str]


def is_optimized() -> bool:
    """Return True if this CPython was compiled with a profile (PGO), as Debian's and the official image's are, and pyenv's is not.

    Debian passes the profile's flags to make and not to configure, and removes them from sysconfig after the build.
    """
    configured = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return configured or not sysconfig.get_config_var("PGO_PROF_USE_FLAG")


def version() -> str:
    """Return the version of this CPython, and True if it is optimized."""
    return f"CPython {'.'.join(map(str, sys.version_info[:3]))} ({'optimized' if is_optimized() else 'not an optimized'} build)"


def _describe(program: Path) -> Description | None:
    """Return the description of a CPython, or None if it does not run or is too old."""
    done = subprocess.run([program, __file__, _DESCRIBE], capture_output=True, text=True)
    if done.returncode:  # also pyenv's commands of versions that are not selected
        return None
    optimized, numbers, path = done.stdout.splitlines()
    return optimized == "True", tuple(map(int, numbers.split("."))), path


def find() -> str:
    """Return the path of the newest optimized CPython on the PATH, in /usr/bin and in /usr/local/bin, or else of the newest one."""
    folders = [*os.get_exec_path(), "/usr/bin", "/usr/local/bin"]
    programs = {Path(folder, name) for folder in folders for name in _NAMES}
    described = [_describe(program) for program in programs if os.access(program, os.X_OK)]
    found = [description for description in described if description and description[1] >= _OLDEST]
    if not found:
        raise SystemExit("CPython 3.11 or newer was not found: install it, or name one with BENCH_PYTHON=...")
    return max(found)[2]


if __name__ == "__main__":
    if sys.argv[1:] == [_DESCRIBE]:
        base = getattr(sys, "_base_executable", sys.executable)  # outside of a virtual environment
        print(is_optimized(), ".".join(map(str, sys.version_info[:3])), base, sep="\n")
    else:
        print(find())
