"""Tree, layers and path of a call of docs/architecture.md, the reasons of readiness in docs/operating.md, and the length of functions."""

import ast
import re
import tomllib
from pathlib import Path

from service.api.readiness import NotReady
from tests.support.repository import ROOT

_ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
_BLOCKS = re.findall(r"^```\n(.*?)^```", _ARCHITECTURE, re.MULTILINE | re.DOTALL)
_OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
_SERVICE = ROOT / "service"


def test_tree_names_each_module() -> None:
    """The tree has each module of service/ once, under its folder, and no other."""
    tree = _BLOCKS[0].partition("service/\n")[2].partition("\ntests/")[0]
    folders: list[tuple[int, str]] = []  # the indentation and the name of each folder around the line
    named = []
    for line in tree.splitlines():
        indentation = len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= indentation:
            folders.pop()
        if found := re.match(r" +(\w+)/", line):
            folders.append((indentation, f"{found[1]}/"))
        named += ["".join(name for _, name in folders) + module for module in re.findall(r"\w+\.py", line)]
    modules = [str(path.relative_to(_SERVICE)) for path in _SERVICE.rglob("*.py") if not path.name.startswith("__")]
    assert sorted(named) == sorted(name for name in modules if not name.startswith("pb/"))


def test_layers() -> None:
    """The layers are those that import-linter checks."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert _BLOCKS[1].splitlines() == [layer.replace("service.", "") for layer in layers]


def _defined(path: Path) -> set[str]:
    """Return the names of a module's variables, functions, classes and methods, those of methods after their class."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            members = node.body if isinstance(node, ast.ClassDef) else []
            names |= {
                node.name,
                *(f"{node.name}.{each.name}" for each in members if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)),
            }
    return names


def test_path_of_a_call() -> None:
    """Each step of a call names functions of its files, and errors that exist."""
    section = _ARCHITECTURE.partition("\n## Path of a call\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[2:-1] for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 10
    unknown = []
    for files, functions, raised in ([re.findall(r"`(.+?)`", cell) for cell in row] for row in rows):
        unknown += sorted(set(functions) - set().union(*(_defined(_SERVICE / file) for file in files)))
        unknown += sorted(set(raised) - _defined(_SERVICE / "errors.py"))
    assert unknown == []


def test_order_of_steps() -> None:
    """The steps of every call that the interceptor runs have the same order in the code and in the documented path."""
    [handle] = [
        node
        for node in ast.walk(ast.parse((_SERVICE / "api" / "interceptor.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.AsyncFunctionDef) and node.name == "_run_steps"
    ]
    calls = [node.func for node in ast.walk(handle) if isinstance(node, ast.Call)]
    called = sorted((call for call in calls if isinstance(call, ast.Attribute)), key=lambda call: (call.lineno, call.col_offset))
    steps = [call.attr.strip("_") for call in called]
    section = _ARCHITECTURE.partition("\n## Path of a call\n")[2].partition("\n### ")[0]
    documented = [name.rpartition(".")[2].strip("_") for name in re.findall(r"`([\w.]+)`", section)]
    both = {"limit_to", "arrive", "receive", "require", "authenticate", "begin_span", "admit"}
    assert both <= set(steps)
    assert [name for name in dict.fromkeys(documented) if name in both] == [name for name in steps if name in both]


def test_reasons_of_readiness() -> None:
    """docs/operating.md explains each reason why a replica is not ready, and no other."""
    section = _OPERATING.partition("\n## Health checks\n")[2].partition("\n## ")[0]
    rows = section.partition("| reason |")[2]
    assert re.findall(r"^\| `(.+?)` \|", rows, re.MULTILINE) == list(NotReady)


def test_functions_fit_on_a_screen() -> None:
    """Functions have at most 30 lines, as CONTRIBUTING.md requires."""
    files = [path for folder in ("service", "migrations", "bench", "tests") for path in (ROOT / folder).rglob("*.py")]
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path in files
        if "yandex" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno and node.end_lineno - node.lineno >= 30
    ]
    assert long == []
