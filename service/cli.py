"""The command `backup-service`: parse, call one function, print."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from service import pb
from service.errors import CommandError, Error
from service.listing import Entry, Skipped
from service.postgres.loading import Options, Target, check_target, load
from service.settings import Settings

app = typer.Typer(
    name="backup-service",
    help="Which backups of Greenplum clusters exist: the server, what fills its catalog, and a client.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
imports = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Fill the catalog from a backup tool's own listing.")
app.add_typer(imports, name="import")


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


@app.command()
def dev() -> None:
    """Serve with an embedded PostgreSQL and a sample of backups: what `make run` runs."""
    from service import dev as development

    development.run(Settings.read())


@app.command()
def serve() -> None:
    """Serve, over the PostgreSQL of BACKUPS_DATABASE_URL."""
    from service import server, telemetry

    settings = Settings.read()
    telemetry.configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    server.serve(settings)


@app.command()
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


@imports.command()
def walg(
    folder_id: FolderId,
    cluster_id: ClusterId,
    file: Annotated[Path | None, typer.Argument(help="The listing; standard input without it.", show_default=False)] = None,
    id_prefix: Annotated[
        str | None, typer.Option(help="What ids begin with, at most 24 characters.", show_default="the cluster's id")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove this cluster's WAL-G backups that the listing no longer has.")] = False,
    prune_any: Annotated[bool, typer.Option("--prune-any", help="With --prune: even more than half of them, or all.")] = False,
    move_folder: Annotated[bool, typer.Option("--move-folder", help="Move the cluster's backups here from another folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen; change nothing.")] = False,
) -> None:
    """Import what `wal-g backup-list --detail --json` prints.

    All or nothing; importing the same listing again changes nothing. A backup's size is WAL-G's compressed_size: the bytes of its own
    files, without the append-optimized files that backups share.
    """
    from service.importers import walg as tool

    options = Options(prune=prune, prune_any=prune_any, move_folder=move_folder, dry_run=dry_run)
    target = Target(folder_id=folder_id, source_cluster_id=cluster_id, tool=tool.TOOL)
    with _reading(file) as stream:
        _load(tool.read(stream, id_prefix=cluster_id if id_prefix is None else id_prefix), target, options)


def _load(listing: Iterable[Entry | Skipped], target: Target, options: Options) -> None:
    from service import output

    check_target(target)
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


@app.command("list")
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

    service = client.Target(address, tls=tls, ca_file=ca_file, token=token)
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


@app.command()
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

    backup = asyncio.run(client.get(client.Target(address, tls=tls, ca_file=ca_file, token=token), backup_id))
    if as_json:
        print(output.json(backup))
    else:
        print(*output.facts(backup, datetime.now(UTC)), sep="\n")


@app.command()
def health(address: Address = DEFAULT_ADDRESS, tls: Tls = False, ca_file: CaFile = None) -> None:
    """Ask whether the service is ready for calls; exit status 1 if it is not."""
    from service import client

    if not asyncio.run(client.is_serving(client.Target(address, tls=tls, ca_file=ca_file, timeout=3))):
        raise CommandError(f"the service at {address} is not ready: its database cannot be reached, or has not been migrated")
    print("SERVING")
