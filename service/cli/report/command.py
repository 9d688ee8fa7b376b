"""The command `report`."""

import asyncio
import contextlib
import io
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from service.cli.environment import read_settings
from service.cli.help import example
from service.cli.input_files import file_error
from service.cli.option_groups import option_groups
from service.cli.rules.judgement import Filters, Rules, filters_of, judge_catalog, rules_of
from service.cli.signals import aborted_by

if TYPE_CHECKING:
    from service.cli.report.page import Cluster, Page, Row, Section
    from service.postgres.database import Database
    from service.postgres.history import Period

commands = typer.Typer()

_CLUSTERS_MAX = 50
_DAYS_MAX = 3660
_STANDARD_OUTPUT = Path("-")


@commands.command(epilog=example("backup-service report --output report.html --folder-id f1 --max-age 26h"))
@option_groups(filters=filters_of, rules=rules_of)
def report(
    filters: Filters,
    rules: Rules,
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="The HTML file to write; `-` is standard output. An existing one is replaced.")
    ],
    days: Annotated[int, typer.Option(min=1, max=_DAYS_MAX, help="Days of the calendars and charts.")] = 180,
    all_: Annotated[
        bool, typer.Option("--all", help=f"With more than {_CLUSTERS_MAX} clusters, also show those without findings.")
    ] = False,
) -> None:
    """Write an HTML page about the backups of each cluster: a summary, calendars of days, sizes, durations and chains.

    The page is one file without scripts. The command reads the PostgreSQL of BACKUPS_DATABASE_URL, not the service.
    """
    if output != _STANDARD_OUTPUT and _is_no_file(output):
        raise typer.BadParameter(f"{output} is not a file", param_hint="--output")
    page = asyncio.run(_write(output, filters, rules, days=days, shows_all=all_))
    clusters = "1 cluster" if page.total == 1 else f"{page.total} clusters"
    left_out = f", {page.left_out} left out (--all shows them)" if page.left_out else ""
    messages = sys.stderr if output == _STANDARD_OUTPUT else sys.stdout
    print(f"Wrote {output}: {clusters}, {page.attention} with findings{left_out}.", file=messages)


def _is_no_file(path: Path) -> bool:
    """Return True for folders and devices. Errors of other paths are reported when the file is written."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


async def _write(output: Path, filters: Filters, rules: Rules, *, days: int, shows_all: bool) -> "Page":
    from service import composition
    from service.cli.report.page import render

    async with composition.database(read_settings()) as database:
        page = await _page(database, filters, rules, days=days, shows_all=shows_all)
        with aborted_by(signal.SIGTERM, signal.SIGHUP), _open(output) as file:  # asyncio handles SIGINT
            async for part in render(page, _sections(database, page)):
                file.write(part)
    return page


@contextlib.contextmanager
def _open(output: Path) -> Iterator[TextIO]:
    """Open standard output, or a temporary file that replaces `output` unless an error occurs."""
    if output == _STANDARD_OUTPUT:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as the page declares
        yield sys.stdout
        return
    temporary = output.with_name(f".report.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            yield file
        temporary.replace(output)
    except OSError as exc:
        raise file_error(f"--output {output}", exc) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


async def _page(database: "Database", filters: Filters, rules: Rules, *, days: int, shows_all: bool) -> "Page":
    from service.cli.report.page import Page, clusters
    from service.postgres.history import Period

    judgement = await judge_catalog(database, filters, rules)
    found = clusters(judgement)
    attention = [cluster for cluster in found if cluster.needs_attention]
    return Page(
        judgement=judgement,
        rules=rules,
        scope=[f"{name.removesuffix('_id')} {value}" for name, value in filters._asdict().items() if value is not None],
        period=Period.until(judgement.now.astimezone(UTC).date(), days),
        clusters=found if shows_all or len(found) <= _CLUSTERS_MAX else attention,
        total=len(found),
        attention=len(attention),
    )


async def _sections(database: "Database", page: "Page") -> "AsyncIterator[tuple[Cluster, list[Section]]]":
    for cluster in page.clusters:
        yield cluster, [await _section(database, row, page.period) for row in cluster.rows]


async def _section(database: "Database", row: "Row", period: "Period") -> "Section":
    from service.cli.report.page import Section, history, restore
    from service.postgres.history import runs_by_day
    from service.postgres.restore_chain import restore_chain

    fresh = row.freshness
    owner = (fresh.source_cluster_id, fresh.tool, fresh.database or "")
    runs = await runs_by_day(database, *owner, period)
    chain = await restore_chain(database, fresh.last_backup_id) if fresh.last_backup_id else None
    return Section(row, history(period, runs), restore(chain))
