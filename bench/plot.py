"""Bar charts of calls per second, as SVG.

The image has its own background, and follows the reader's light or dark colour scheme.
"""

from xml.sax.saxutils import escape

_WIDTH, _LABELS, _VALUES, _MARGIN = 780, 320, 70, 20
_BAR, _STEP, _TITLE = 16, 23, 40
_BARS = _WIDTH - _LABELS - _VALUES - 2 * _MARGIN
_OWN = "This service"

_STYLE = """
  .background { fill: #ffffff; stroke: #d0d7de } .title, .own { font-weight: 600 }
  text { fill: #1f2328; font: 13px system-ui, sans-serif } .note { fill: #59636e; font-size: 12px }
  .bar { fill: #8c959f } .bar.own { fill: #1a7f64 }
  @media (prefers-color-scheme: dark) {
    .background { fill: #151b23; stroke: #3d444d } text { fill: #f0f6fc } .note { fill: #9198a1 }
    .bar { fill: #656c76 } .bar.own { fill: #2ea587 }
  }
"""


def plot(rates: dict[str, dict[str, float]], *, note: str) -> str:
    """Return one chart below the other, each with a bar for each system.

    Args:
        rates: calls per second, by the title of the chart and the label of the bar.
        note: text below the charts.
    """
    drawn, y = [], _MARGIN
    for title, systems in rates.items():
        drawn += _chart(title, systems, y)
        y += _TITLE + _STEP * len(systems)
    height = y + 2 * _MARGIN
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" role="img">',
        "<title>Calls per second of this service and of other implementations</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="background" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="6"/>',
        *drawn,
        f'<text class="note" x="{_MARGIN}" y="{height - _MARGIN}">{escape(note)}</text>',
        "</svg>\n",
    ])  # fmt: skip


def _chart(title: str, systems: dict[str, float], top: int) -> list[str]:
    """Return the elements of one chart, whose longest bar has the full width."""
    drawn = [f'<text class="title" x="{_MARGIN}" y="{top + 14}">{escape(title)}</text>']
    left = _MARGIN + _LABELS
    for number, (label, rate) in enumerate(systems.items()):
        y = top + 26 + number * _STEP
        own = " own" if label == _OWN else ""
        width = max(_BARS * rate / max(systems.values()), 1)
        drawn += [
            f'<text class="label{own}" x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="bar{own}" x="{left}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>',
            f'<text class="value{own}" x="{left + width + 6:.1f}" y="{y + 12}">{rate:,.0f}</text>',
        ]
    return drawn
