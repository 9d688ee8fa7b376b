"""`list`, `get` and `health`: calls of a running service."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from service import pb
from service.cli.help import example
from service.errors import CommandError

commands = typer.Typer()

Address = Annotated[str, typer.Option(envvar="BACKUPS_ADDRESS", help="host:port of the service.")]
Tls = Annotated[bool, typer.Option("--tls", help="Connect with TLS.")]
CaFile = Annotated[
    Path | None,
    typer.Option(help="Connect with TLS, and trust these, not the system's.", exists=True, dir_okay=False, show_default=False),
]
Token = Annotated[str | None, typer.Option(envvar="BACKUPS_TOKEN", help="A bearer token.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print protobuf's JSON.")]

DEFAULT_ADDRESS = "127.0.0.1:50051"


@commands.command("list", epilog=example("backup-service list --folder-id f1 --page-size 10"))
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
    from service.cli import client

    service = client.Endpoint(address, tls=tls, ca_file=ca_file, token=token)
    pages = client.pages(service, folder_id, page_size=page_size, page_token=page_token, follow=all_)
    asyncio.run(_print_json(pages) if as_json else _print_table(pages, folder_id, to_the_end=all_))


async def _print_table(pages: AsyncGenerator[pb.ListBackupsResponse], folder_id: str, *, to_the_end: bool) -> None:
    from service.cli import output

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
        print(f"There are more: --all, or --page-token {output.printable(page_token)}", file=sys.stderr)


async def _print_json(pages: AsyncGenerator[pb.ListBackupsResponse]) -> None:
    """One ListBackupsResponse, however many pages it is made of, printed as they come."""
    from service.cli import output

    head, separator, page_token = '{\n  "backups": [', "\n", ""
    async with contextlib.aclosing(pages):
        async for page in pages:
            print(head, end="")  # with the first page: a command that is refused prints nothing
            head = ""
            for backup in page.backups:
                print(separator + output.json(backup, indent=4), end="")
                separator = ",\n"
            sys.stdout.flush()
            page_token = page.next_page_token
    print("\n  ]" + (f',\n  "nextPageToken": {json.dumps(page_token)}' if page_token else "") + "\n}")


@commands.command(epilog=example("backup-service get c1:backup_20261120T031501Z --json"))
def get(
    backup_id: Annotated[str, typer.Argument(metavar="ID", help="The backup's id.")],
    as_json: Json = False,
    address: Address = DEFAULT_ADDRESS,
    tls: Tls = False,
    ca_file: CaFile = None,
    token: Token = None,
) -> None:
    """Show one backup."""
    from service.cli import client, output

    backup = asyncio.run(client.get(client.Endpoint(address, tls=tls, ca_file=ca_file, token=token), backup_id))
    if as_json:
        print(output.json(backup))
    else:
        print(*output.facts(backup, datetime.now(UTC)), sep="\n")


@commands.command(epilog=example("backup-service health --address 127.0.0.1:50051"))
def health(address: Address = DEFAULT_ADDRESS, tls: Tls = False, ca_file: CaFile = None) -> None:
    """Ask whether the service is ready for calls; exit status 1 if it is not."""
    from service.cli import client

    if not asyncio.run(client.is_serving(client.Endpoint(address, tls=tls, ca_file=ca_file, timeout=3))):
        raise CommandError(f"the service at {address} is not ready: its log says why")
    print("SERVING")
