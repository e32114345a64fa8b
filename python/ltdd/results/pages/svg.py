"""Shapes of an SVG drawing as markup; text is escaped, colours are CSS classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

_MARKERS = (
    "M{0:.1f} {1:.1f}m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "M{0:.1f} {1:.1f}m-4 -4h8v8h-8z",
    "M{0:.1f} {1:.1f}m0 -5l5 9h-10z",
    "M{0:.1f} {1:.1f}m0 -5l5 5l-5 5l-5 -5z",
)


def text(x: float, y: float, words: str, anchor: str = "middle", css: str = "") -> Markup:
    """Return words with their middle, start or end at a place."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, css, words
    )


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    """Return a straight line."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, css
    )


def bar(
    x: float, y: float, width: float, height: float, css: str, tip: str, opacity: float = 1
) -> Markup:
    """Return a rectangle that says ``tip`` under the pointer."""
    fade = Markup(' fill-opacity="{:.3f}"').format(opacity) if opacity < 1 else Markup()
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"{}>'
        "<title>{}</title></rect>"
    ).format(x, y, max(width, 0.5), max(height, 0), css, fade, tip)


def marker(x: float, y: float, style: int, tip: str = "") -> Markup:
    """Return the mark of a series, one of four shapes."""
    said = Markup("<title>{}</title>").format(tip) if tip else Markup()
    shape = _MARKERS[style % len(_MARKERS)].format(x, y)
    return Markup('<path d="{}" class="mark s{}">{}</path>').format(shape, style, said)


def polyline(points: Sequence[tuple[float, float]], style: int) -> Markup:
    """Return the line of a series through its points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline points="{}" class="line s{}"/>').format(path, style)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from ``low`` to ``high``, about ``count`` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]
