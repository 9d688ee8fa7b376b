"""The command `backup-service`: parse, call one function, print."""

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from service import pb
from service.errors import CommandError, Error
from service.listing import Entry, Skipped, completed_since
from service.postgres.loading import Options, Target, check_target, load
from service.settings import Settings

if TYPE_CHECKING:
    from service.postgres.imports import Imported

app = typer.Typer(
    name="backup-service",
    help="Which backups of Greenplum clusters exist: the server, what fills its catalog, and a client.",
    epilog="""\b
Exit status: 0 done; 1 it failed, and says why on standard error;
2 the command line was not understood, or `status --max-age` found something too old.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
imports = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Fill the catalog from a backup tool's own listing.")
app.add_typer(imports, name="import")


def _example(*commands: str) -> str:
    """What ends a command's help; unwrapped, so that it can be copied."""
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)


def main() -> None:
    """Runs the command; what was foreseen to go wrong is one message on standard error, and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a locale may lack a character of an id
    try:
        app(prog_name="backup-service")
    except Error as exc:
        print(f"backup-service: {exc}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `list | head` has seen enough
        sys.stderr.close()
        sys.exit(1)


# Servers


@app.command(epilog=_example("backup-service dev"))
def dev() -> None:
    """Serve with an embedded PostgreSQL and a sample of backups: what `make run` runs."""
    from service import dev as development

    development.run(Settings.read())


@app.command(epilog=_example("BACKUPS_DATABASE_URL=postgresql://backups_service@db/backups backup-service serve"))
def serve() -> None:
    """Serve, over the PostgreSQL of BACKUPS_DATABASE_URL."""
    from service import server, telemetry

    settings = Settings.read()
    telemetry.configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    try:
        server.serve(settings)
    except Error:
        raise
    except Exception as exc:  # a traceback would have its text
        telemetry.event("failed", level="critical", error=telemetry.describe(exc))
        raise typer.Exit(1) from None


@app.command(epilog=_example("backup-service migrate --dry-run"))
def migrate(
    to: Annotated[str, typer.Option(help="The revision to go to: a number such as 0001, or head.")] = "head",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the SQL that would bring an empty database there; change nothing.")
    ] = False,
) -> None:
    """Bring the schema of BACKUPS_DATABASE_URL to the newest revision; safe to run twice at once."""
    from service.postgres import migration

    settings = Settings.read()
    roles = migration.Roles(service=settings.service_role, imports=settings.import_role)
    if dry_run:
        typer.echo(migration.migration_sql(to=to, roles=roles))
    else:
        migration.migrate(settings.require_database_url(), to=to, roles=roles)
        typer.echo(f"The schema is at revision {to}.")


# Imports

FolderId = Annotated[str, typer.Option("--folder-id", help="The folder that the backups belong to.")]
ClusterId = Annotated[str, typer.Option("--cluster-id", help="The cluster that the backups are of.")]
IdPrefix = Annotated[str | None, typer.Option(help="What ids begin with, at most 24 characters.", show_default="the cluster's id")]
Prune = Annotated[bool, typer.Option("--prune", help="Remove this cluster's backups by this tool that the listing no longer has.")]
PruneAny = Annotated[bool, typer.Option("--prune-any", help="With --prune: even more than half of them, or all.")]
MoveFolder = Annotated[bool, typer.Option("--move-folder", help="Move the cluster's backups here from another folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen; change nothing.")]


_UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def _instant(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise typer.BadParameter("must be a time with its offset, such as 2026-11-20T00:00:00Z")
    return time


def _length(text: str) -> timedelta:
    matched = re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII)
    if not matched:
        raise typer.BadParameter("must be a number with s, m, h or d, such as 26h")
    return int(matched[1]) * _UNITS[matched[2]]


Since = Annotated[
    datetime | None,
    typer.Option(
        parser=_instant,
        metavar="TIME",
        help="Leave out backups completed before, such as 2026-11-20T00:00:00Z: what a clone inherited from its source.",
        show_default=False,
    ),
]


@imports.command(
    epilog=_example("wal-g backup-list --detail --json | backup-service import walg --folder-id f1 --cluster-id c1"),
)
def walg(
    folder_id: FolderId,
    cluster_id: ClusterId,
    file: Annotated[Path | None, typer.Argument(help="The listing; standard input without it.", show_default=False)] = None,
    id_prefix: IdPrefix = None,
    since: Since = None,
    prune: Prune = False,
    prune_any: PruneAny = False,
    move_folder: MoveFolder = False,
    dry_run: DryRun = False,
) -> None:
    """Import what `wal-g backup-list --detail --json` prints.

    All or nothing; importing the same listing again changes nothing. A backup's size is WAL-G's compressed_size: the bytes of its own
    files, without the append-optimized files that backups share.
    """
    from service.importers import walg as tool

    options = Options(prune=prune, prune_any=prune_any, move_folder=move_folder, dry_run=dry_run)
    target = Target(folder_id=folder_id, source_cluster_id=cluster_id, tool=tool.TOOL)
    with _reading(file) as stream:
        _load(tool.read(stream, id_prefix=cluster_id if id_prefix is None else id_prefix), target, options, since=since)


@imports.command(
    epilog=_example(
        "backup-service import gpbackup /data/master/gpseg-1/gpbackup_history.db \\",
        "      --folder-id f1 --cluster-id c1 --timezone Europe/Berlin",
    ),
)
def gpbackup(
    history: Annotated[Path, typer.Argument(metavar="PATH", help="gpbackup_history.db, of the coordinator's data directory.")],
    folder_id: FolderId,
    cluster_id: ClusterId,
    timezone: Annotated[str, typer.Option(help="The coordinator's, in which gpbackup wrote its times, such as Europe/Berlin.")],
    backup_dir: Annotated[
        Path | None,
        typer.Option(
            help="What gpbackup's --backup-dir was: add up the files of a backup there, if all its directories are.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    id_prefix: IdPrefix = None,
    since: Since = None,
    prune: Prune = False,
    prune_any: PruneAny = False,
    move_folder: MoveFolder = False,
    dry_run: DryRun = False,
) -> None:
    """Import gpbackup's history, gpbackup_history.db.

    All or nothing; importing the same history again changes nothing. The file is read, and never locked for long. gpbackup records no
    sizes: they are 0 without --backup-dir.
    """
    from service.importers import gpbackup as tool

    options = Options(prune=prune, prune_any=prune_any, move_folder=move_folder, dry_run=dry_run)
    target = Target(folder_id=folder_id, source_cluster_id=cluster_id, tool=tool.TOOL)
    prefix = cluster_id if id_prefix is None else id_prefix
    _load(tool.read(history, id_prefix=prefix, timezone=timezone, backup_dir=backup_dir), target, options, since=since)


def _load(listing: Iterable[Entry | Skipped], target: Target, options: Options, *, since: datetime | None) -> None:
    from service import output

    check_target(target)
    if since:
        listing = completed_since(listing, since)
    summary = asyncio.run(load(Settings.read().require_database_url(), listing, target, options))
    for line in output.summary_lines(summary, target):
        typer.echo(line)


@contextlib.contextmanager
def _reading(file: Path | None) -> Iterator[BinaryIO]:
    """A listing, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import wrap_file

    console = Console(stderr=True)
    try:
        opened = file.open("rb") if file else contextlib.nullcontext(sys.stdin.buffer)
    except OSError as exc:
        raise CommandError(f"{file}: {exc.strerror}") from exc
    with opened as stream:
        if not console.is_terminal:
            yield stream
            return
        total = file.stat().st_size if file else 0
        with wrap_file(stream, total=total, description="Importing", console=console, transient=True) as watched:
            yield watched


# The catalog


@app.command(epilog=_example("backup-service status --folder-id f1 --max-age 26h"))
def status(
    folder_id: Annotated[str | None, typer.Option("--folder-id", help="Only this folder's clusters.", show_default=False)] = None,
    cluster_id: Annotated[str | None, typer.Option("--cluster-id", help="Only this cluster.", show_default=False)] = None,
    max_age: Annotated[
        timedelta | None,
        typer.Option(
            parser=_length,
            metavar="LENGTH",
            help="Exit with 2 if a last backup, or a last import, is older, or if there is none: 90m, 26h, 8d.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show each cluster's last backup and last import, by tool, over the PostgreSQL of BACKUPS_DATABASE_URL."""
    from service import output

    clusters = asyncio.run(_imported(Settings.read(), folder_id, cluster_id))
    now = datetime.now(UTC)
    if as_json:
        print(output.status_json(clusters, now, max_age))
    elif clusters:
        print(*output.status_lines(clusters, now), sep="\n")
    if not clusters:
        print("Nothing has been imported into the catalog that this asks for.", file=sys.stderr)
    if max_age is not None:
        late = list(output.overdue_lines(clusters, now, max_age))
        print(*late, sep="\n", end="\n" if late else "", file=sys.stderr)
        if late or not clusters:
            raise typer.Exit(2)


async def _imported(settings: Settings, folder_id: str | None, cluster_id: str | None) -> "list[Imported]":
    from service.postgres.database import Limits, open_database
    from service.postgres.imports import imported

    limits = Limits(
        pool_size=1,
        connect=settings.connect_timeout,
        acquire=settings.acquire_timeout,
        statement=settings.request_timeout,
        max_age=settings.pool_max_age,
    )
    async with open_database(settings.require_database_url(), limits, pooled=settings.pooler == "transaction") as database:
        return await imported(database, folder_id=folder_id, cluster_id=cluster_id)


@app.command(epilog=_example("backup-service forget --cluster-id c1 --dry-run"))
def forget(
    cluster_id: Annotated[str, typer.Option("--cluster-id", help="The cluster that is no more.")],
    folder_id: Annotated[str | None, typer.Option("--folder-id", help="Only what is in this folder.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all that the catalog has of a decommissioned cluster: its backups by every tool, and the record of its imports.

    In one transaction; the backups themselves are not touched. Uses the PostgreSQL of BACKUPS_DATABASE_URL.
    """
    from service import output
    from service.postgres import forgetting

    url, cluster = Settings.read().require_database_url(), forgetting.Cluster(cluster_id, folder_id)
    goes = asyncio.run(forgetting.what_goes(url, cluster))
    if dry_run:
        print(*output.forgotten_lines(cluster_id, goes, "This would go"), sep="\n")
        return
    if not yes:
        print(*output.forgotten_lines(cluster_id, goes, "This will go"), sep="\n", file=sys.stderr)
        if not sys.stdin.isatty():
            raise CommandError("nothing was removed: --yes, where nobody can be asked")
        typer.confirm("Remove it from the catalog?", abort=True, err=True)
    asyncio.run(forgetting.forget(url, cluster, expected=goes))
    print(*output.forgotten_lines(cluster_id, goes, "This has gone"), sep="\n")


# A client

Address = Annotated[str, typer.Option(envvar="BACKUPS_ADDRESS", help="host:port of the service.")]
Tls = Annotated[bool, typer.Option("--tls", help="Connect with TLS.")]
CaFile = Annotated[
    Path | None,
    typer.Option(help="With --tls: certificates to trust in place of the system's.", exists=True, dir_okay=False, show_default=False),
]
Token = Annotated[str | None, typer.Option(envvar="BACKUPS_TOKEN", help="A bearer token.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print protobuf's JSON.")]

DEFAULT_ADDRESS = "127.0.0.1:50051"


@app.command("list", epilog=_example("backup-service list --folder-id f1 --page-size 10"))
def list_(
    folder_id: Annotated[str, typer.Option("--folder-id", help="The folder whose backups to list.")],
    page_size: Annotated[int, typer.Option(help="Backups a page, 1 to 1000; 0 is the service's default, 100.")] = 0,
    page_token: Annotated[str, typer.Option(help="Where to go on: the token that an earlier page ended with.", show_default=False)] = "",
    all_: Annotated[bool, typer.Option("--all", help="Follow the page tokens to the end.")] = False,
    as_json: Json = False,
    address: Address = DEFAULT_ADDRESS,
    tls: Tls = False,
    ca_file: CaFile = None,
    token: Token = None,
) -> None:
    """List a folder's backups, newest first."""
    from service import client

    service = client.Endpoint(address, tls=tls, ca_file=ca_file, token=token)
    pages = client.pages(service, folder_id, page_size=page_size, page_token=page_token, follow=all_)
    asyncio.run(_print_json(pages) if as_json else _print_table(pages, folder_id, to_the_end=all_))


async def _print_table(pages: AsyncGenerator[pb.ListBackupsResponse], folder_id: str, *, to_the_end: bool) -> None:
    from service import output

    table = output.Table(datetime.now(UTC))
    count, page_token = 0, ""
    async with contextlib.aclosing(pages):
        async for page in pages:
            for line in table.lines(page.backups) if page.backups else ():
                print(line)
            sys.stdout.flush()
            count, page_token = count + len(page.backups), page.next_page_token
    if not count:
        print(f"No backups in folder {output.printable(folder_id)}.", file=sys.stderr)
    elif page_token and not to_the_end:
        print(f"There are more: --all, or --page-token {page_token}", file=sys.stderr)


async def _print_json(pages: AsyncGenerator[pb.ListBackupsResponse]) -> None:
    """One ListBackupsResponse, however many pages it is made of, printed as they come."""
    from service import output

    print('{\n  "backups": [', end="")
    separator, page_token = "\n", ""
    async with contextlib.aclosing(pages):
        async for page in pages:
            for backup in page.backups:
                print(separator + output.json(backup, indent=4), end="")
                separator = ",\n"
            sys.stdout.flush()
            page_token = page.next_page_token
    print("\n  ]" + (f',\n  "nextPageToken": "{page_token}"' if page_token else "") + "\n}")


@app.command(epilog=_example("backup-service get c1:backup_20261120T031501Z --json"))
def get(
    backup_id: Annotated[str, typer.Argument(metavar="ID", help="The backup's id.")],
    as_json: Json = False,
    address: Address = DEFAULT_ADDRESS,
    tls: Tls = False,
    ca_file: CaFile = None,
    token: Token = None,
) -> None:
    """Show one backup."""
    from service import client, output

    backup = asyncio.run(client.get(client.Endpoint(address, tls=tls, ca_file=ca_file, token=token), backup_id))
    if as_json:
        print(output.json(backup))
    else:
        print(*output.facts(backup, datetime.now(UTC)), sep="\n")


@app.command(epilog=_example("backup-service health --address 127.0.0.1:50051"))
def health(address: Address = DEFAULT_ADDRESS, tls: Tls = False, ca_file: CaFile = None) -> None:
    """Ask whether the service is ready for calls; exit status 1 if it is not."""
    from service import client

    if not asyncio.run(client.is_serving(client.Endpoint(address, tls=tls, ca_file=ca_file, timeout=3))):
        raise CommandError(f"the service at {address} is not ready: its database cannot be reached, or has not been migrated")
    print("SERVING")
