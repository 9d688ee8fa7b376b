"""Program that writes docs/report-light.png and docs/report-dark.png: the report of sample clusters in Chromium (`make screenshots`)."""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import asyncpg
from playwright.sync_api import sync_playwright

from service.dev.embedded_postgres import EmbeddedPostgres
from service.postgres.migration import Roles, migrate
from tests.support.catalog import OWNER
from tests.support.debian import debian_program
from tests.support.report_catalog import load_sample
from tests.support.repository import ROOT

_SIZE = {"width": 860, "height": 1180}


async def _create(postgres: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(postgres.url("postgres"))
    for role in (OWNER, *Roles()):
        await connection.execute(f"CREATE ROLE {role} LOGIN")
    await connection.execute(f"CREATE DATABASE backups OWNER {OWNER}")
    await connection.close()


def _write_report(folder: Path) -> Path:
    file = folder / "report.html"
    postgres = EmbeddedPostgres(folder / "postgres")
    with postgres.running():
        asyncio.run(_create(postgres))
        migrate(postgres.url("backups", user=OWNER))
        asyncio.run(load_sample(postgres.url("backups", user=Roles().imports)))
        settings = os.environ | {"BACKUPS_DATABASE_URL": postgres.url("backups", user=Roles().service)}
        command = [sys.executable, "-m", "service", "report", "--output", str(file), "--folder-id", "warehouse", "--max-age", "30h"]
        subprocess.run(command, cwd=ROOT, env=settings, check=True)
    postgres.remove()
    return file


def main() -> None:
    chromium = debian_program("chromium-headless-shell")
    if not chromium:
        sys.exit("chromium-headless-shell is not installed: apt-get install chromium-headless-shell")
    with tempfile.TemporaryDirectory(prefix="backups-test-", dir="/tmp") as folder:
        _take_screenshot(_write_report(Path(folder)), chromium)


def _take_screenshot(file: Path, chromium: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport=_SIZE, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(f"file://{file}")
            page.screenshot(path=ROOT / "docs" / f"report-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
