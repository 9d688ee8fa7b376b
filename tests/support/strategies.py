"""Hypothesis strategies for backups that the catalog can hold."""

from datetime import UTC, datetime

from hypothesis import strategies as st

from tests.support.catalog import Backup

_FIRST, _LAST = datetime(1970, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999998)  # noqa: DTZ001  # hypothesis adds the zone

times = st.one_of(
    st.datetimes(min_value=_FIRST, max_value=_LAST, timezones=st.just(UTC)),
    st.sampled_from(
        [
            _FIRST,
            _LAST,
            datetime(1970, 1, 1, 0, 0, 0, 1),  # noqa: DTZ001
            datetime(1970, 1, 1, 0, 2, 7),  # noqa: DTZ001
            datetime(1970, 1, 1, 0, 2, 8),  # noqa: DTZ001
            datetime(2038, 1, 19, 3, 14, 8),  # noqa: DTZ001
            datetime(2026, 11, 20, 0, 0, 0, 999999),  # noqa: DTZ001
        ]
    ).map(lambda time: time.replace(tzinfo=UTC)),
)
backup_ids = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=50)
cluster_ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=50)
folder_ids = cluster_ids.filter(lambda text: text != "*")  # `*` in a token means all folders
SIZE_MAX = 2**53 - 1
sizes = st.integers(0, SIZE_MAX) | st.integers(0, 52).flatmap(lambda bit: st.sampled_from([2**bit - 1, 2**bit, min(2**bit + 1, SIZE_MAX)]))


@st.composite
def backups(draw: st.DrawFn) -> Backup:
    """Draw a backup."""
    started_at, created_at = sorted([draw(times), draw(times)])
    return Backup(draw(backup_ids), draw(folder_ids), created_at, draw(cluster_ids), started_at, draw(sizes))
