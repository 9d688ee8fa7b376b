"""The page of the report: content, markup and colours."""

import re
from datetime import timedelta
from html.parser import HTMLParser

import pytest

from service.cli.report.page import history, restore
from service.postgres.history import Kind, Period
from service.postgres.restore_chain import Chain
from tests.support.report_pages import HOSTILE_NAMES, NOW, TODAY, hostile_html, make_html, make_link, make_page, make_row, make_runs
from tests.support.repository import ROOT

_TEMPLATES = ROOT / "service" / "cli" / "report" / "templates"


class _Markup(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str | None] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


# Content


def test_best_run_of_a_day() -> None:
    """A day shows its best run: the first of base, incremental, failed, not restorable and partial."""
    order: tuple[Kind, ...] = ("base", "incremental", "failed", "unusable", "partial")
    for number, kind in enumerate(order):
        found = history(Period.until(TODAY, 3), [make_runs(1, each) for each in order[number:]])
        assert list(found.calendars[0].paths) == [None, kind], kind
        assert found.restorable_days == (number < 2)


@pytest.mark.parametrize(
    ("days", "gap"),
    [
        ([], None),
        ([0], None),
        ([1], None),
        ([2], (1, 1)),
        ([5, 2, 1], (4, 3)),
        ([9, 5, 2], (8, 6)),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], None),
    ],
    ids=["none", "today", "yesterday", "not since", "within", "longest", "daily"],
)
def test_longest_gap(days: list[int], gap: tuple[int, int] | None) -> None:
    """The longest gap is the longest time after the first restorable backup without another one; today is not over."""
    found = history(Period.until(TODAY, 10), [make_runs(day, "base") for day in days] + [make_runs(9 - day, "partial") for day in range(9)])
    assert found.gap == (gap and Period(*(TODAY - timedelta(days=day) for day in gap)))


def test_charts() -> None:
    """Each kind of backup has a chart of its sizes and one of its durations, without unknown values and without failed runs."""
    runs = [make_runs(3, "base", 2048, 2), make_runs(2, "incremental", None, 0.5), make_runs(1, "failed"), make_runs(0, "base", 1024, 1)]
    found = history(Period.until(TODAY, 4), runs)
    assert [(each.title, each.last, each.largest) for each in found.charts] == [
        ("Size of base backups", "1.0 KiB", "2.0 KiB"),
        ("Duration of base backups", "1h 0m", "2h 0m"),
        ("Duration of incremental backups", "30m 0s", "30m 0s"),
    ]
    assert found.days == {"base": 2, "incremental": 1, "failed": 1}


def test_restore() -> None:
    """A chain has its number of backups and its size, which is unknown if one size is. The middle of a long chain is left out."""
    assert restore(None) is None
    chain = Chain(make_link(0), "f1", "c1", "walg", "", [make_link(1)], [make_link(9)])
    found = restore(chain)
    assert found
    assert (found.total, found.size, found.left_out, [link.id for link in found.links]) == (2, 200, 0, ["b1", "b0"])
    long = restore(chain._replace(needs=[make_link(number, size=None) for number in range(100, 0, -1)]))
    assert long
    assert (long.total, long.size, long.left_out, len(long.links)) == (101, None, 89, 12)
    assert [long.links[number].id for number in (0, 1, -1)] == ["b100", "b10", "b0"]


async def test_summary() -> None:
    """The summary counts overdue, broken, unknown, missing and failed backups, and the rows that need attention come first."""
    rows = [
        make_row("c1"),
        make_row("c2", last_backup_id=None, last_created_at=None, broken=2, unknown=3, missing=4),
        make_row("c3", tool="gpbackup", database="sales", failed_attempts=5, running_name="r", running_started_at=NOW - timedelta(days=3)),
        make_row("c4", tool="gpbackup", database="hr", failed_attempts=0, running_name="r", running_started_at=NOW),
    ]
    page = make_page(*rows)
    assert page.counts == {"overdue": 1, "broken": 2, "unknown": 3, "missing": 4, "failed": 6}
    assert [cluster.id for cluster in page.clusters if cluster.needs_attention] == ["c2", "c3"]
    html = await make_html(page)
    assert "Need attention: 2 of 4 clusters." in html
    assert re.findall(r'<a href="#c\d+"><bdi>(\w+)', html) == ["c2", "c3", "c1", "c4"]
    assert "No findings for 1 cluster." in await make_html(make_page(make_row()))


async def test_left_out() -> None:
    """The page contains the number of clusters without a section."""
    page = make_page(make_row("c1"), make_row("c2"))
    html = await make_html(page._replace(clusters=page.clusters[:1]))
    assert "Left out, because they have no findings: 1 cluster." in html
    assert "c2" not in _Markup(html).text


async def test_empty_catalog() -> None:
    """If nothing was imported, the page contains a message."""
    assert "No import matches" in await make_html(make_page())


# Markup


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: ascii(name)[:20])
async def test_hostile_names(name: str) -> None:
    """Names stay text: they add no element and no attribute, and control characters are shown as escapes."""
    expected, html = _Markup(await hostile_html("name")), await hostile_html(name)
    found = _Markup(html)
    assert found.elements == expected.elements
    assert {attribute for attribute, _ in found.attributes} == {attribute for attribute, _ in expected.attributes}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)
    shown = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in name)
    assert found.text.count(shown) >= 6


async def test_self_contained() -> None:
    """The page has no script, no style attribute, no event handler and no address, and its policy forbids loading anything."""
    html = await make_html(
        make_page(make_row(), make_row("c2", broken=1)), [make_runs(1, "base", 1, 1)], Chain(make_link(0), "f1", "c1", "walg", "", [], [])
    )
    found = _Markup(html)
    assert not {"script", "img", "link", "iframe", "object", "embed", "use", "image"} & found.elements
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("style", "src", "srcset", "action", "xlink:href")]
    assert {value[:2] for name, value in found.attributes if name == "href" and value} == {"#c"}
    assert "url(" not in html
    assert "@import" not in html
    assert "//" not in html.replace("<!doctype", "")
    assert "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'" in html
    assert len(found.ids) == len({*found.ids})


# Colours


def _themes() -> dict[str, dict[str, str]]:
    css = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    light, dark, printed = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks)
    return {"light": light, "dark": dark, "print": printed}


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_contrast(theme: str) -> None:
    """In each theme, texts have a contrast of at least 4.5 and symbols one of at least 3 (WCAG 2.2, AA)."""
    colours = _themes()[theme]
    assert colours.keys() == _themes()["light"].keys()
    texts, symbols = ("text", "muted", "link", "good", "bad"), ("base", "incremental", "partial", "failed", "unusable", "none")
    for ground in ("page", "card"):
        assert {name for name in texts if _contrast(colours[name], colours[ground]) < 4.5} == set()
        assert {name for name in symbols if _contrast(colours[name], colours[ground]) < 3} == set()
