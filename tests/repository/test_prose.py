"""Wording of code, tests, documents and configuration: phrases that have a plainer replacement."""

import ast
import re
from pathlib import Path

from tests.support.repository import ROOT, tracked_files

_SUFFIXES = {".py", ".md", ".yaml", ".yml", ".sql", ".go", ".js", ".sh", ".toml", ".proto"}
_EXCLUDED = ("service/pb/yandex/", "tests/fuzz/corpus/", "bench/results/", "tests/repository/test_prose.py")

# Each phrase with its replacement.
_REPLACEMENTS = {
    r"anew": "again",
    r"for ever": "forever",
    r"lest": "so that ... not",
    r"meanwhile": "while",
    r"mend(s|ed|ing)?": "fix",
    r"goodbye": "close",
    r"(un)?foreseen": "(un)expected",
    r"in a hurry": "forced",
    r"strangers?": "unauthenticated client",
    r"somebody|whoever|(that|by) nobody": "a client, a caller",
    r"(is|are) no more": "no longer",
    r"(is|are) told": "receives, is logged, is reported",
    r"also (if|when)": "even if",
    r"at once": "immediately, at the same time",
    r"(an|no|the|unread) answers?": "response",
    r"refusals?": "rejection, error",
    r"(rejects?|forbids?) to": "refuses to",
    r"returns? (why|how (many|long|old))": "return the reason, the number, the duration",
}
_PHRASE = re.compile(rf"\b({'|'.join(_REPLACEMENTS)})\b", re.IGNORECASE)


def test_replaced_phrases_do_not_return() -> None:
    """No code, test, document or configuration file contains a phrase that has a plainer replacement."""
    files = [file for file in tracked_files() if Path(file).suffix in _SUFFIXES and not file.startswith(_EXCLUDED)]
    found = [
        f"{file}:{number}: {match[0]}"
        for file in files
        for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), 1)
        for match in _PHRASE.finditer(line)
    ]
    assert found == []


# Names that begin with a capital in every place.
_NAMES = {"Envoy", "False", "None", "Patroni", "Prometheus", "Python", "True"}
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def test_descriptions_of_arguments_and_errors_begin_in_lower_case() -> None:
    """In the sections Args and Raises of docstrings, the text after a name begins in lower case."""
    found = []
    for file in (file for file in tracked_files() if file.endswith(".py") and not file.startswith(_EXCLUDED)):
        nodes = (node for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))) if isinstance(node, _DOCUMENTED))
        sections = "\n".join((ast.get_docstring(node) or "").partition(":\n    ")[2] for node in nodes)
        found += [
            f"{file}: {word}" for word in re.findall(r"^(?: {4})?[\w, .*]+: ([A-Z][a-z]*)\b", sections, re.MULTILINE) if word not in _NAMES
        ]
    assert found == []
