"""The commands `import walg` and `import gpbackup`."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import typer

from service.cli.client.time_range import instant
from service.cli.environment import read_settings
from service.cli.help import example
from service.cli.imports.copied_input import STANDARD_INPUT, file_or_copy
from service.cli.input_files import file_error
from service.cli.option_groups import option_groups
from service.cli.signals import aborted_by
from service.entry import Listed, Selection
from service.errors import CommandError
from service.postgres.imports.import_backups import Options, Target, check_target, load

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Fill the catalog from a backup tool's own listing.")


class _Owner(NamedTuple):
    """The owner of the backups in a listing."""

    folder_id: str
    cluster_id: str
    id_prefix: str

    def target(self, tool: str) -> Target:
        return Target(folder_id=self.folder_id, source_cluster_id=self.cluster_id, tool=tool)


def _owner(
    folder_id: Annotated[str, typer.Option("--folder-id", help="The folder that the backups belong to.")],
    cluster_id: Annotated[str, typer.Option("--cluster-id", help="The cluster whose backups they are.")],
    id_prefix: Annotated[str | None, typer.Option(help="Prefix of ids, at most 24 characters.", show_default="the cluster's id")] = None,
) -> _Owner:
    return _Owner(folder_id, cluster_id, cluster_id if id_prefix is None else id_prefix)


def _selection(
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=instant,
            metavar="TIME",
            help="Skip backups completed before this time, such as 2026-11-20T00:00:00Z. A clone's listing has older ones of its source.",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave out the entry with this name of the tool. Repeatable.", show_default=False),
    ] = None,
) -> Selection:
    return Selection(since, frozenset(exclude or ()))


def _options(
    prune: Annotated[bool, typer.Option("--prune", help="Remove backups of this cluster and tool that are not in the listing.")] = False,
    prune_any: Annotated[bool, typer.Option("--prune-any", help="With --prune: remove even more than half of them, or all.")] = False,
    move_folder: Annotated[
        bool, typer.Option("--move-folder", help="Move the cluster's backups to this folder if they are in another.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the changes without making them.")] = False,
) -> Options:
    if prune_any and not prune:
        raise typer.BadParameter("--prune-any needs --prune: alone it removes nothing")
    return Options(prune=prune, prune_any=prune_any, move_folder=move_folder, dry_run=dry_run)


@commands.command(
    epilog=example("wal-g backup-list --detail --json | backup-service import walg --folder-id f1 --cluster-id c1"),
)
@option_groups(owner=_owner, selection=_selection, options=_options)
def walg(
    owner: _Owner,
    selection: Selection,
    options: Options,
    file: Annotated[Path | None, typer.Argument(help="The listing; without it, or with -, standard input.", show_default=False)] = None,
) -> None:
    """Import the output of `wal-g backup-list --detail --json`.

    The import is all or nothing, and importing the same listing again changes nothing. The size of a backup is WAL-G's compressed_size:
    the bytes of its own files, without the append-optimized files that backups share.
    """
    from service.importers import walg as tool

    with _reading(None if file == STANDARD_INPUT else file) as stream:
        _load(tool.read(stream, id_prefix=owner.id_prefix, selection=selection), owner.target(tool.TOOL), options)


_BackupDir = Annotated[
    Path | None,
    typer.Option(
        help="The value of gpbackup's --backup-dir: sizes are the sum of a backup's files there, if all its directories exist.",
        exists=True,
        file_okay=False,
        show_default=False,
    ),
]


@commands.command(
    epilog=example(
        "ssh coordinator cat /data/master/gpseg-1/gpbackup_history.db | backup-service import gpbackup - \\",
        "      --folder-id f1 --cluster-id c1 --timezone Europe/Berlin",
    ),
)
@option_groups(owner=_owner, selection=_selection, options=_options)
def gpbackup(
    history: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="The file gpbackup_history.db of the coordinator's data directory, or - for standard input."),
    ],
    timezone: Annotated[str, typer.Option(help="The time zone of the coordinator, in which gpbackup writes times, such as Europe/Berlin.")],
    owner: _Owner,
    selection: Selection,
    options: Options,
    backup_dir: _BackupDir = None,
    ignore_database: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave a dropped database out of freshness and metrics. Repeatable.", show_default=False),
    ] = None,
) -> None:
    """Import gpbackup's history file, gpbackup_history.db.

    The import is all or nothing, and importing the same history again changes nothing. The file is only read, and never locked for long.
    gpbackup records no sizes: they are unknown without --backup-dir.
    """
    from service.importers import gpbackup as tool

    with file_or_copy(history) as file:
        listing = tool.read(file, id_prefix=owner.id_prefix, timezone=timezone, backup_dir=backup_dir, selection=selection)
    options = options._replace(ignore_databases=frozenset(ignore_database or ()))
    _load(listing, owner.target(tool.TOOL), options)


def _load(listing: Iterable[Listed], target: Target, options: Options) -> None:
    from service.cli.imports.summary import summary_lines

    check_target(target)
    summary = asyncio.run(load(read_settings().require_database_url(), listing, target, options))
    for line in summary_lines(summary, target):
        typer.echo(line)


class _InterruptibleInput:
    """Input whose reads end with the first Ctrl-C. asyncio's own handler only takes effect when a read returns."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        with aborted_by(signal.SIGINT):
            return self._stream.read(size)


@contextlib.contextmanager
def _reading(file: Path | None) -> Iterator[_InterruptibleInput]:
    """Open the listing; show a progress bar if standard error is a terminal."""
    with _opened(file) as stream, _with_progress(stream, file) as watched:
        yield _InterruptibleInput(watched)


def _with_progress(stream: BinaryIO, file: Path | None) -> AbstractContextManager[BinaryIO]:
    if sys.stderr is None or not sys.stderr.isatty():
        return contextlib.nullcontext(stream)
    from rich.console import Console
    from rich.progress import wrap_file

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        return contextlib.nullcontext(stream)
    total = file.stat().st_size if file else 0
    return wrap_file(stream, total=total, description="Importing", console=console, transient=True)


def _opened(file: Path | None) -> AbstractContextManager[BinaryIO]:
    if file is None:
        if sys.stdin is None:  # started with standard input closed
            raise CommandError("standard input is closed: name the file of the listing")
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return file.open("rb")
    except (OSError, ValueError) as exc:
        raise file_error(str(file), exc) from None
