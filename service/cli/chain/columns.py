"""Table and JSON of `chain`."""

import json
from collections.abc import Iterator
from textwrap import indent
from typing import NamedTuple

from service.cli import formatting
from service.cli.formatting import printable
from service.cli.table import Column
from service.postgres.restore_chain import Chain, Link


class Row(NamedTuple):
    """A line of the table."""

    relation: str
    link: Link


def rows(chain: Chain) -> Iterator[Row]:
    """Return the lines in the order of a restore."""
    yield from (Row("needs", link) for link in chain.needs)
    yield Row("this", chain.backup)
    yield from (Row("needed by", link) for link in chain.needed_by)


def columns() -> list[Column[Row]]:
    """Return the columns of `chain`."""
    return [
        Column(header="RELATION", text=lambda row: row.relation),
        Column(header="BACKUP", text=lambda row: printable(row.link.id or row.link.name or "")),
        Column(header="COMPLETED", text=lambda row: formatting.time(row.link.created_at) if row.link.created_at else "-", dropped=3),
        Column(header="KIND", text=lambda row: kind(row.link), dropped=2),
        Column(header="SIZE", text=lambda row: "-" if row.link.size is None else formatting.size(row.link.size), align="right", dropped=1),
        Column(header="STATE", text=lambda row: row.link.state),
    ]


def kind(link: Link) -> str:
    """Return the contents of a partial backup, or else the method."""
    if link.contents not in ("everything", None):
        return link.contents
    return link.method or "-"


def json_lines(chain: Chain) -> Iterator[str]:
    """Return the lines of the backup as JSON, with `needs` and `neededBy`. A chain may be too long for one string."""
    owner = {
        "folderId": chain.folder_id,
        "clusterId": chain.source_cluster_id,
        "tool": chain.tool,
        "database": chain.database or None,
    }
    yield json.dumps(_object(chain.backup) | owner, indent=2).removesuffix("\n}") + ","
    yield from _json_list("needs", chain.needs, end=",")
    yield from _json_list("neededBy", chain.needed_by, end="")
    yield "}"


def _json_list(name: str, links: list[Link], *, end: str) -> Iterator[str]:
    if not links:
        yield f'  "{name}": []{end}'
        return
    yield f'  "{name}": ['
    for number, link in enumerate(links, 1):
        yield indent(json.dumps(_object(link), indent=2), "    ") + ("," if number < len(links) else "")
    yield f"  ]{end}"


def _object(link: Link) -> dict[str, object]:
    return {
        "id": link.id,
        "name": link.name,
        "state": link.state,
        "completedAt": link.created_at and formatting.json_time(link.created_at),
        "method": link.method,
        "contents": link.contents,
        "sizeBytes": link.size,
        "missingSince": link.missing_since and formatting.json_time(link.missing_since),
    }
