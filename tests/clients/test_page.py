"""docs/clients.md shows the code that the tests run."""

import re

import pytest

from tests.clients.programs import HERE, NAMES
from tests.support.repository import ROOT

_PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
_SHOWN = re.findall(r"^\[tests/clients/(.+)\]\(.+\):\n\n```\w+\n((?:.*\n)*?)```", _PAGE, re.MULTILINE)


@pytest.mark.parametrize(("file", "code"), _SHOWN, ids=[file for file, _ in _SHOWN])
def test_code(file: str, code: str) -> None:
    """Each piece of code is the whole file that the page names."""
    assert code == (HERE / file).read_text(encoding="utf-8")


def test_every_client_is_shown() -> None:
    """Each client that is tested has its code on the page, at the version that is pinned."""
    assert {file.rpartition("/")[0].replace("/", "_") for file, _ in _SHOWN} == {*NAMES, "go_calls"}
    pins = {
        "python/requirements.txt": r"^yandexcloud==(\S+)",
        "node/package.json": r'"@yandex-cloud/nodejs-sdk": "(\S+)"',
        "go/v1/go.mod": r"^\s*github.com/yandex-cloud/go-sdk (\S+)",
        "go/v2/go.mod": r"^\s*github.com/yandex-cloud/go-sdk/v2 (\S+)",
    }
    for file, pattern in pins.items():
        found = re.search(pattern, (HERE / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert found
        assert f"| {found[1]} |" in _PAGE
