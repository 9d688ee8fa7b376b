"""The commands and file names of docs/importing.md."""

import re

from tests.support.dev import data_folder, running_dev
from tests.support.examples import comparable, examples, output
from tests.support.repository import ROOT

_PAGE = ROOT / "docs" / "importing.md"


async def test_commands() -> None:
    """The commands of the page, run in order over the sample catalog, print the output on the page."""
    shown = examples(_PAGE)
    assert len(shown) >= 8
    with data_folder() as folder:
        async with running_dev(folder) as running:
            [url] = re.findall(r"BACKUPS_DATABASE_URL='(.+?)'", "\n".join(running.lines))
            for command, expected in shown:
                printed = await output("/bin/sh", "-c", command, BACKUPS_DATABASE_URL=url, BACKUPS_ADDRESS=running.address)
                assert comparable(printed) == comparable(expected), command


def test_named_files_exist() -> None:
    """The files that the page names exist in the repository."""
    named = re.findall(r"`((?:deploy|samples)/[^`\s]+)`", _PAGE.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
