"""Clusters of the catalog and the rules that judge them, as `status` and `report` select them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from service.cli.option_groups import check_text
from service.cli.rules.durations import parse_duration

if TYPE_CHECKING:
    from service.cli.rules.overdue import Overdue
    from service.postgres.database import Database
    from service.postgres.freshness import Freshness


def duration(text: str) -> timedelta:
    """Parse an option such as `26h`."""
    if (found := parse_duration(text)) is None:
        raise typer.BadParameter("must be a number with s, m, h or d, such as 26h")
    return found


def duration_option(help_text: str) -> Any:
    """Return an option whose value is a duration, such as `26h`."""
    return typer.Option(parser=duration, metavar="DURATION", help=help_text, show_default=False)


class Filters(NamedTuple):
    """The clusters that are shown and judged."""

    folder_id: str | None
    cluster_id: str | None
    tool: str | None


def filters_of(
    folder_id: Annotated[
        str | None, typer.Option("--folder-id", callback=check_text, help="Only this folder's clusters.", show_default=False)
    ] = None,
    cluster_id: Annotated[
        str | None, typer.Option("--cluster-id", callback=check_text, help="Only this cluster.", show_default=False)
    ] = None,
    tool: Annotated[Literal["walg", "gpbackup"] | None, typer.Option(help="Only backups of this tool.", show_default=False)] = None,
) -> Filters:
    return Filters(folder_id, cluster_id, tool)


class Rules(NamedTuple):
    """Limits, and the file of `--expect`."""

    max_age: timedelta | None
    max_age_base: timedelta | None
    expect: Path | None

    @property
    def any(self) -> bool:
        return any(rule is not None for rule in self)


def rules_of(
    max_age: Annotated[
        timedelta | None,
        duration_option(
            "The age above which a last restorable backup or a last import is overdue, such as 90m, 26h or 8d. "
            "A cluster without a restorable backup, or with one dated in the future, is overdue, too."
        ),
    ] = None,
    max_age_base: Annotated[timedelta | None, duration_option("The same for the last restorable base (not an increment).")] = None,
    expect: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Judge only the clusters that this file names. One that was never imported is overdue. "
            "A line is: cluster [tool [database]] [max-age].",
            show_default=False,
        ),
    ] = None,
) -> Rules:
    return Rules(max_age, max_age_base, expect)


class Judgement(NamedTuple):
    """Rows of freshness, and the rules that they break at a time."""

    rows: "list[Freshness]"
    judged: "list[Freshness]"
    overdue: "list[Overdue]"
    now: datetime


async def judge_catalog(database: "Database", filters: Filters, rules: Rules) -> Judgement:
    """Read the rows of freshness and judge them.

    Raises:
        CatalogUnavailable: see `Database.fetch`.
        CommandError: the file of --expect cannot be used.
    """
    from service.cli.rules.expected import read_expected
    from service.cli.rules.overdue import Limits, judge, rows_to_judge
    from service.postgres.freshness import freshness

    if rules.expect and any(filters):
        raise typer.BadParameter(
            "judges the clusters that its file names: leave out --folder-id, --cluster-id and --tool", param_hint="--expect"
        )
    expected = read_expected(rules.expect) if rules.expect else None
    found = await freshness(database, folder_id=filters.folder_id, cluster_id=filters.cluster_id)
    rows = [row for row in found if filters.tool in (None, row.tool)]
    now = datetime.now(UTC)
    overdue = list(judge(rows, now, Limits(rules.max_age, rules.max_age_base), expected))
    return Judgement(rows, rows_to_judge(rows, expected), overdue, now)
