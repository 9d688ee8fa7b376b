"""The commands `list`, `get` and `health`, which call a running service."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeVar

import typer

from service import pb
from service.cli.client.time_range import TimeRange, instant, within
from service.cli.help import example
from service.cli.option_groups import check_host_name, option_groups
from service.errors import CommandError

if TYPE_CHECKING:
    from service.cli.client.calls import Credentials, Endpoint

commands = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print protobuf's JSON.")]

_HEALTH_TIMEOUT_S = 3.0
_CA_MAX_LENGTH = 1 << 20  # bytes; a file with all public authorities has 250 kB

_Request = TypeVar("_Request", pb.ListBackupsRequest, pb.ListClusterBackupsRequest, pb.GetBackupRequest)


def _endpoint(
    address: Annotated[str, typer.Option(envvar="BACKUPS_ADDRESS", help="host:port of the service.")] = "127.0.0.1:50051",
    tls: Annotated[bool, typer.Option("--tls", help="Connect with TLS.")] = False,
    ca_file: Annotated[
        Path | None,
        typer.Option(envvar="BACKUPS_CA_FILE", help="Connect with TLS, and trust only the certificates of this file.", show_default=False),
    ] = None,
    server_name: Annotated[
        str | None,
        typer.Option(
            envvar="BACKUPS_SERVER_NAME",
            callback=check_host_name,
            help="Connect with TLS, and expect this host name in the certificate instead of the address's.",
            show_default=False,
        ),
    ] = None,
) -> "Endpoint":
    from service.cli.client.calls import Endpoint
    from service.cli.client.service_address import ServiceAddress

    ca = None if ca_file is None else _certificates(ca_file)
    is_tls = tls or ca is not None or server_name is not None
    return Endpoint(ServiceAddress.parse(address), tls=is_tls, ca=ca, server_name=server_name)


def _certificates(ca_file: Path) -> bytes:
    """Return the content of a PEM file. gRPC itself does not report a file without certificates."""
    import ssl

    from service.cli.input_files import read_small

    content = read_small(ca_file, name="--ca-file", limit=_CA_MAX_LENGTH)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii"))
    except (ValueError, ssl.SSLError):
        raise CommandError(f"--ca-file {ca_file}: the file has no certificates in PEM") from None
    return content


def _credentials(
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="BACKUPS_TOKEN_FILE",
            help="File with a bearer token, read before each call; without it, the token of BACKUPS_TOKEN is used.",
            show_default=False,
        ),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Send the token to another machine even without TLS.")] = False,
) -> "Credentials":
    from service.cli.client.calls import Credentials
    from service.cli.client.credentials import token_reader

    return Credentials(token_reader(token_file), is_insecure=insecure)


def _request(make: Callable[..., _Request], **fields: object) -> _Request:
    try:
        return make(**fields)
    except ValueError as exc:  # a number of more than 64 bits, or an argument that is not text in this locale
        raise CommandError(f"the request cannot be encoded: {exc}") from None


class _Owner(NamedTuple):
    """The folder or the cluster whose backups are listed."""

    kind: Literal["folder", "cluster"]
    id: str

    def request(self, page_size: int, page_token: str) -> pb.ListBackupsRequest | pb.ListClusterBackupsRequest:
        if self.kind == "folder":
            return _request(pb.ListBackupsRequest, folder_id=self.id, page_size=page_size, page_token=page_token)
        return _request(pb.ListClusterBackupsRequest, cluster_id=self.id, page_size=page_size, page_token=page_token)


def _owner(
    folder_id: Annotated[str | None, typer.Option("--folder-id", help="The folder whose backups to list.", show_default=False)] = None,
    cluster_id: Annotated[str | None, typer.Option("--cluster-id", help="The cluster whose backups to list.", show_default=False)] = None,
) -> _Owner:
    if folder_id is not None and cluster_id is None:
        return _Owner("folder", folder_id)
    if cluster_id is not None and folder_id is None:
        return _Owner("cluster", cluster_id)
    raise typer.BadParameter("give one of --folder-id and --cluster-id")


def _times(
    since: Annotated[
        datetime | None,
        typer.Option(parser=instant, metavar="TIME", help="Only backups completed at this time or later.", show_default=False),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(parser=instant, metavar="TIME", help="Only backups completed before this time.", show_default=False),
    ] = None,
) -> TimeRange:
    return TimeRange(since, until)


@commands.command("list", epilog=example("backup-service list --cluster-id c1 --since 2026-11-20T00:00:00Z"))
@option_groups(owner=_owner, times=_times, endpoint=_endpoint, credentials=_credentials)
def list_(
    owner: _Owner,
    times: TimeRange,
    endpoint: "Endpoint",
    credentials: "Credentials",
    page_size: Annotated[int, typer.Option(help="Backups for each page, 1 to 1000; 0 means 100.")] = 0,
    page_token: Annotated[str, typer.Option(help="Continue after an earlier page: its next page token.", show_default=False)] = "",
    all_: Annotated[bool, typer.Option("--all", help="Follow the page tokens to the last page.")] = False,
    as_json: Json = False,
) -> None:
    """List the backups of a folder or a cluster, newest first."""
    from service.cli.client import calls

    follow = all_ or times.is_limited
    pages = within(calls.pages(endpoint, credentials, owner.request(page_size, page_token), follow=follow), times)
    asyncio.run(_print_json(pages) if as_json else _print_table(pages, owner, follow=follow))


async def _print_table(pages: AsyncGenerator[pb.ListBackupsResponse], owner: _Owner, *, follow: bool) -> None:
    from service.cli import output
    from service.cli.formatting import printable
    from service.cli.table import Table, print_left_out, terminal_width

    table = Table(output.columns(datetime.now(UTC)), max_width=terminal_width())
    count, page_token = 0, ""
    async with contextlib.aclosing(pages):
        async for page in pages:
            for line in table.lines(page.backups) if page.backups else ():
                print(line)
            sys.stdout.flush()
            count, page_token = count + len(page.backups), page.next_page_token
    print_left_out(table)
    if not count:
        print(f"No backups {'in' if owner.kind == 'folder' else 'of'} {owner.kind} {printable(owner.id)}.", file=sys.stderr)
    elif page_token and not follow:
        print(f"There are more: --all, or --page-token {printable(page_token)}", file=sys.stderr)


async def _print_json(pages: AsyncGenerator[pb.ListBackupsResponse]) -> None:
    """Print all pages as one ListBackupsResponse, while they arrive."""
    from service.cli import output

    head, separator, page_token = '{\n  "backups": [', "\n", ""
    async with contextlib.aclosing(pages):
        async for page in pages:
            print(head, end="")  # only after the first page, so that a failed call prints nothing
            head = ""
            for backup in page.backups:
                print(separator + output.json(backup, indent=4), end="")
                separator = ",\n"
            sys.stdout.flush()
            page_token = page.next_page_token
    print("\n  ]" + (f',\n  "nextPageToken": {json.dumps(page_token)}' if page_token else "") + "\n}")


@commands.command(epilog=example("backup-service get c1:backup_20261120T031501Z --json"))
@option_groups(endpoint=_endpoint, credentials=_credentials)
def get(
    backup_id: Annotated[str, typer.Argument(metavar="ID", help="The backup's id.")],
    endpoint: "Endpoint",
    credentials: "Credentials",
    as_json: Json = False,
) -> None:
    """Show one backup."""
    from service.cli import output
    from service.cli.client import calls

    backup = asyncio.run(calls.get(endpoint, credentials, _request(pb.GetBackupRequest, backup_id=backup_id)))
    if as_json:
        print(output.json(backup))
    else:
        print(*output.facts(backup, datetime.now(UTC)), sep="\n")


@commands.command(epilog=example("backup-service health --address 127.0.0.1:50051"))
@option_groups(endpoint=_endpoint)
def health(endpoint: "Endpoint") -> None:
    """Check that the service is ready for calls. The exit status is 1 if it is not."""
    from service.cli.client import calls

    if not asyncio.run(calls.is_serving(endpoint._replace(timeout=_HEALTH_TIMEOUT_S))):
        raise CommandError(f"the service at {endpoint.address.text} is not ready: its log has the reason")
    print("SERVING")
