"""The recipe of docs/authentication.md for a key, a JWKS and a token without an identity provider."""

import re
import stat
from pathlib import Path

from tests.support import processes
from tests.support.catalog import AddBackups
from tests.support.commands import RunCommand, environment
from tests.support.repository import ROOT
from tests.support.server import StartServer

_PAGE = (ROOT / "docs" / "authentication.md").read_text(encoding="utf-8")


async def test_recipe(start_server: StartServer, command: RunCommand, add_backups: AddBackups, tmp_path: Path) -> None:
    """The token of the recipe gives access to its folder and to no other, and no other user can read the key and the token."""
    await add_backups(1, folder_id="demo-folder")
    section = _PAGE.partition("## Tokens without an identity provider")[2]
    [script] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    done = await processes.run("/bin/sh", "-euc", script, cwd=tmp_path, env=environment())
    assert done.returncode == 0, done.stderr
    assert {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("signing.key", "token")} == {
        "signing.key": 0o600,
        "token": 0o600,
    }

    [(issuer, audience)] = re.findall(r"export BACKUPS_JWT_ISSUER=(\S+) BACKUPS_JWT_AUDIENCE=(\S+)", script)
    settings = {"auth": "jwt", "jwks": str(tmp_path / "jwks.json"), "jwt_issuer": issuer, "jwt_audience": audience}
    async with start_server(**settings) as server:
        options = ("--address", str(server.address))
        listed = await command("list", "--folder-id", "demo-folder", "--token-file", str(tmp_path / "token"), *options)
        assert (listed.status, listed.stderr, listed.stdout.count("\n")) == (0, "", 2)
        denied = await command("list", "--folder-id", "another", "--token-file", str(tmp_path / "token"), *options)
        assert (denied.status, denied.stderr.split(":")[1]) == (1, " PERMISSION_DENIED")
        assert "UNAUTHENTICATED" in (await command("list", "--folder-id", "demo-folder", *options)).stderr
