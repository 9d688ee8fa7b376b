"""The command `chain`."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.environment import read_settings
from service.cli.help import example
from service.cli.option_groups import check_text
from service.errors import CommandError

if TYPE_CHECKING:
    from service.postgres.restore_chain import Chain

commands = typer.Typer()


@commands.command(epilog=example("backup-service chain c1:backup_20261120T031501Z"))
def chain(
    backup_id: Annotated[str, typer.Argument(metavar="ID", callback=check_text, help="The backup's id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the backups that a backup needs, and those that need it.

    Each one is usable, missing (no longer listed), broken (something that it needs is missing) or unknown.
    The command reads the PostgreSQL of BACKUPS_DATABASE_URL, not the service.
    """
    from service.cli.chain import columns
    from service.cli.table import Table, print_left_out, terminal_width

    found = asyncio.run(_read(backup_id))
    if as_json:
        for line in columns.json_lines(found):
            print(line)
        return
    table = Table(columns.columns(), max_width=terminal_width())
    for line in table.lines(columns.rows(found)):
        print(line)
    print_left_out(table)


async def _read(backup_id: str) -> "Chain":
    from service import composition
    from service.cli.formatting import printable
    from service.postgres.restore_chain import restore_chain

    async with composition.database(read_settings()) as database:
        found = await restore_chain(database, backup_id)
    if found is None:
        raise CommandError(f"the catalog has no backup {printable(backup_id)[:100]}: `backup-service list` shows the ids")
    return found
