"""What docs/importing.md shows is what happens."""

import re

from tests.acceptance.test_dev import StartDev, _dev, _folder  # noqa: F401  # fixtures
from tests.support.examples import comparable, examples, output
from tests.support.repository import ROOT

_PAGE = ROOT / "docs" / "importing.md"


async def test_commands(dev: StartDev) -> None:
    """Each command that the page shows, run one after the other over the sample's catalog, prints what the page shows."""
    shown = examples(_PAGE)
    assert len(shown) >= 8
    async with dev() as running:
        [url] = re.findall(r"BACKUPS_DATABASE_URL='(.+?)'", "\n".join(running.lines))
        for command, expected in shown:
            printed = await output("/bin/sh", "-c", command, BACKUPS_DATABASE_URL=url, BACKUPS_ADDRESS=running.address)
            assert comparable(printed) == comparable(expected), command


def test_files_are_there() -> None:
    """Each file that the page names is in the repository."""
    named = re.findall(r"`((?:deploy|samples)/[^`\s]+)`", _PAGE.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
