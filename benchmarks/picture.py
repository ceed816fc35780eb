"""Bars as an SVG picture: what a README shows, in light and in dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_LEFT, _BARS, _RIGHT = 250, 360, 190  # widths: titles, bars, figures
_ROW, _BAR, _HEAD, _FOOT = 42, 14, 64, 44
# A picture does not know the page's colours, but follows the reader's setting, as the page does. It has a ground of its
# own, so that it can be read where the two disagree.
_STYLE: Final = """
  .ground { fill: #ffffff }
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .small { font-size: 11px; fill: #57606a }
  .title { font-size: 16px; font-weight: 600 }
  .ratio { font-weight: 600 }
  .ours { fill: #1a7f64 }
  .theirs { fill: #9aa4ae }
  .limit { stroke: #cf222e; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 }
    text { fill: #e6edf3 } .small { fill: #9198a1 } .ours { fill: #2ea98a } .theirs { fill: #656c76 }
  }
"""


@dataclass(frozen=True, slots=True)
class Bars:
    """Two bars.

    Attributes:
        title: What was measured.
        unit: `tokens/s`; or `MB` or `s`, of which less is better.
        ours, theirs: In that unit.
        ratio: How many times better ours is.
        share: Of the machine's limit that ours reaches, 0 to 1; 0: not known.
    """

    title: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    share: float


def picture(heading: str, rival: str, footing: str, rows: Sequence[Bars]) -> str:
    """An SVG document. Each row has a scale of its own; the red line is the machine's limit, where that is near."""
    width, height = _LEFT + _BARS + _RIGHT, _HEAD + _ROW * len(rows) + _FOOT
    limit = 91 + 7 * len(rival)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(heading)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{width}" height="{height}" rx="6"/>',
        _text(16, 28, heading, "title"),
        f'<rect class="ours" x="16" y="40" width="10" height="10"/>{_text(31, 49, "Puna", "small")}',
        f'<rect class="theirs" x="76" y="40" width="10" height="10"/>{_text(91, 49, rival, "small")}',
        f'<path class="limit" d="M{limit} 38v14"/>',
        _text(limit + 7, 49, "limit of this machine in the same run", "small"),
    ]
    for index, row in enumerate(rows):
        parts += _row(row, _HEAD + _ROW * index)
    parts += [_text(16, height - 18, footing, "small"), "</svg>"]
    return "\n".join(parts) + "\n"


def _row(row: Bars, top: int) -> list[str]:
    limit = row.ours / row.share if row.share > 0 else 0.0
    longest = max(row.ours, row.theirs, min(limit, 2 * row.ours))
    ours, theirs = (_BARS * value / longest for value in (row.ours, row.theirs))
    right = _LEFT + _BARS + 12
    beside = f"{row.share:.0%} of the limit" if row.share > 0 else "less is better" if row.unit != "tokens/s" else ""
    digits = 0 if max(row.ours, row.theirs) >= 1000 else 2 if row.unit == "s" else 1
    parts = [
        _text(16, top + 21, row.title),
        f'<rect class="ours" x="{_LEFT}" y="{top + 2}" width="{ours:.1f}" height="{_BAR}"/>',
        f'<rect class="theirs" x="{_LEFT}" y="{top + 4 + _BAR}" width="{theirs:.1f}" height="{_BAR}"/>',
        _text(right, top + 14, f"{row.ratio:.2f} ×", "ratio"),
        _text(right + 54, top + 14, beside, "small"),
        _text(right, top + 31, f"{row.ours:,.{digits}f} : {row.theirs:,.{digits}f} {row.unit}", "small"),
    ]
    if 0 < limit <= longest:
        parts.append(f'<path class="limit" d="M{_LEFT + _BARS * limit / longest:.1f} {top}v{2 * _BAR + 6}"/>')
    return parts


def _text(x: float, y: float, text: str, style: str = "") -> str:
    attribute = f' class="{style}"' if style else ""
    return f'<text{attribute} x="{x}" y="{y}">{escape(text)}</text>'
