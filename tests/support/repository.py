"""Files of the checkout under test."""

import ast
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def named_tests(text: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the test functions that a document names, such as `tests/unit/test_errors.py::test_drawing`.

    Raises:
        LookupError: a test does not exist.
    """
    return [_test_function(file, name) for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)]


def _test_function(file: str, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node
    raise LookupError(f"{file}::{name} does not exist")


def tracked_files() -> list[str]:
    """Return the paths of the files that Git tracks or would track, relative to `ROOT`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = os.fsdecode(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout).split("\0")
    return sorted(file for file in set(listed) if (ROOT / file).is_file())
