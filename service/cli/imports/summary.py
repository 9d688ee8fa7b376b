"""Text that an import prints when it has ended."""

from collections.abc import Iterable, Iterator

from service.cli.formatting import printable
from service.postgres.imports.import_backups import Summary, Target
from service.postgres.imports.listing import Noted

_CHAINS = {
    ("walg", "broken"): "a broken chain: the listing lacks a backup that a restore needs (a storage that is down looks the same)",
    ("gpbackup", "broken"): "a broken chain: a backup that a restore needs is deleted, being deleted, or no longer in the history",
    ("walg", "unknown"): "an unknown chain: a backup that a restore needs was left out, or is not recorded",
    ("gpbackup", "unknown"): "an unknown chain: a backup that a restore needs was left out, has no row, or is not recorded",
}

_LINES_MAX = 20  # of each kind: a listing can contain any number of different reasons


def summary_lines(summary: Summary, target: Target) -> Iterator[str]:
    """Return the counts, the reasons of skipped entries and the warnings of an import or a dry run."""
    verb = "Would import" if summary.dry_run else "Imported"
    yield f"{verb} cluster {printable(target.source_cluster_id)} into folder {printable(target.folder_id)}: {_counts(summary)}."
    if summary.types:
        yield "  The listing has " + ", ".join(f"{count} {name}" for name, count in summary.types.items()) + "."
    yield from _first(f"  {count} skipped: {reason}" for reason, count in summary.skipped.items())
    yield from _unusable_lines(summary)
    yield from _first(f"  {noted.entries} {warning} [{_example(noted)}]" for warning, noted in summary.warnings.items())
    if summary.missing:
        yield f"  {summary.missing} newly missing from the listing: kept in the catalog, and not restorable, until --prune removes them"
    for state, noted in summary.chains.items():
        yield f"  {noted.entries} with {_CHAINS[target.tool, state]} [{_example(noted)}]"
    if summary.dry_run and summary.pruned.rejection:
        yield f"  The import would be rejected: {summary.pruned.rejection}"
    if not (summary.added or summary.changed or summary.pruned.removed or summary.moved or summary.missing):
        yield "The catalog is already up to date." if summary.unchanged else "Nothing was imported: the listing has no usable entry."


def _unusable_lines(summary: Summary) -> Iterator[str]:
    for message in summary.unusable_examples:
        yield f"  skipped: {message}"
    if more := summary.unusable - len(summary.unusable_examples):
        yield f"  skipped: {more} more unusable entries"


def _counts(summary: Summary) -> str:
    counts = {"added": summary.added, "changed": summary.changed, "unchanged": summary.unchanged, "removed": summary.pruned.removed}
    if summary.moved:
        counts["moved to this folder"] = summary.moved
    counts["skipped"] = summary.skipped_entries
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _example(noted: Noted) -> str:
    return noted.example if noted.entries == 1 else f"{noted.example} and others"


def _first(lines: Iterable[str]) -> Iterator[str]:
    taken = list(lines)
    yield from taken[:_LINES_MAX]
    if len(taken) > _LINES_MAX:
        yield f"  and so on, {len(taken) - _LINES_MAX} more lines"
