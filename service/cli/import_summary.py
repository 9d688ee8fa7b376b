"""Text that an import prints when it has ended."""

from collections.abc import Iterable, Iterator

from service.cli.formatting import printable
from service.postgres.import_backups import Noted, Summary, Target

_LINES_MAX = 20  # of each kind: a listing can contain any number of different reasons


def summary_lines(summary: Summary, target: Target) -> Iterator[str]:
    """Return the counts, the reasons of skipped entries and the warnings of an import or a dry run."""
    verb = "Would import" if summary.dry_run else "Imported"
    yield f"{verb} cluster {printable(target.source_cluster_id)} into folder {printable(target.folder_id)}: {_counts(summary)}."
    if summary.kinds:
        yield "  The listing has " + ", ".join(f"{count} {kind}" for kind, count in summary.kinds.items()) + "."
    yield from _first(f"  {count} skipped: {reason}" for reason, count in summary.skipped.items())
    yield from _first(f"  {noted.entries} {warning} [{_example(noted)}]" for warning, noted in summary.warnings.items())
    if summary.dry_run and summary.pruned.refusal:
        yield f"  The import would be rejected: {summary.pruned.refusal}"
    if not (summary.added or summary.changed or summary.pruned.removed or summary.moved):
        yield "The catalog is already up to date." if summary.unchanged else "Nothing was imported: the listing has no usable entry."


def _counts(summary: Summary) -> str:
    counts = {"added": summary.added, "changed": summary.changed, "unchanged": summary.unchanged, "removed": summary.pruned.removed}
    if summary.moved:
        counts["moved to this folder"] = summary.moved
    counts["skipped"] = sum(summary.skipped.values())
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _example(noted: Noted) -> str:
    return noted.example if noted.entries == 1 else f"{noted.example} and others"


def _first(lines: Iterable[str]) -> Iterator[str]:
    taken = list(lines)
    yield from taken[:_LINES_MAX]
    if len(taken) > _LINES_MAX:
        yield f"  and so on, {len(taken) - _LINES_MAX} more lines"
