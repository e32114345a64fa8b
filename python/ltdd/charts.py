"""Charts of the report as inline SVG, which follow the page's light or dark colours.

Every function returns markup that is safe to put into a page: names are escaped. Colours come from
CSS classes of the page (``s0`` to ``s3`` for series), so shape and dash also tell the series apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

# One drawing unit is one CSS pixel at full width; on a phone a chart shrinks to about two thirds,
# which leaves its 13-pixel labels readable.
WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 20, 44


class Point(NamedTuple):
    """One point of a line."""

    x: float
    y: float


@dataclass(frozen=True)
class Series:
    """Values of one network; ``style`` 0..3 picks colour, dash and marker."""

    name: str
    values: Sequence[float]
    style: int
    spreads: Sequence[float] = ()


@dataclass(frozen=True)
class Band:
    """Classes ``start`` to ``end`` (exclusive) of the x axis that belong together."""

    name: str
    start: int
    end: int


def _chart(label: str, parts: Sequence[Markup], height: int = HEIGHT) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(WIDTH, height, label, label, Markup("").join(parts))


def _text(x: float, y: float, text: str, anchor: str = "middle", css: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, css, text
    )


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, css
    )


def _rect(x: float, y: float, width: float, height: float, css: str, tip: str = "") -> Markup:
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}">'
        "<title>{}</title></rect>"
    ).format(x, y, max(width, 0.5), max(height, 0), css, tip)


def _marker(x: float, y: float, style: int, tip: str) -> Markup:
    shapes = (
        "M{0:.1f} {1:.1f}m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
        "M{0:.1f} {1:.1f}m-4 -4h8v8h-8z",
        "M{0:.1f} {1:.1f}m0 -5l5 9h-10z",
        "M{0:.1f} {1:.1f}m0 -5l5 5l-5 5l-5 -5z",
    )
    return Markup('<path d="{}" class="mark s{}"><title>{}</title></path>').format(
        shapes[style % 4].format(x, y), style, tip
    )


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


def _y_axis(low: float, high: float, unit: str = "") -> tuple[list[Markup], float]:
    """Return grid lines with labels, and the pixels of one unit."""
    scale = (HEIGHT - TOP - BOTTOM) / (high - low)
    parts = []
    for value in ticks(low, high):
        y = HEIGHT - BOTTOM - (value - low) * scale
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(_text(LEFT - 6, y + 4, f"{value:,.6g}{unit}", "end"))
    return parts, scale


def _class_labels(names: Sequence[str], step: float) -> list[Markup]:
    """Label the classes below the axis; only some of them when they are many."""
    every = max(1, math.ceil(len(names) * 16 / (WIDTH - LEFT - RIGHT)))
    parts = []
    for i in range(0, len(names), every):
        x, y = LEFT + (i + 0.5) * step, HEIGHT - BOTTOM + 14
        short = names[i] if len(names[i]) <= 9 else names[i][:8] + "…"
        if every == 1 and 7 * min(9, max(map(len, names))) < step:
            parts.append(_text(x, y + 2, short))
        else:
            parts.append(
                Markup(
                    '<text transform="translate({:.1f} {:.1f}) rotate(-38)" '
                    'text-anchor="end" class="small">{}</text>'
                ).format(x + 3, y - 4, short)
            )
    return parts


def _bands(bands: Sequence[Band], step: float) -> list[Markup]:
    parts = []
    for number, band in enumerate(bands):
        x, width = LEFT + band.start * step, (band.end - band.start) * step
        parts.append(_rect(x, TOP, width, HEIGHT - TOP - BOTTOM, f"band{number % 3}", band.name))
        if width > 36:
            parts.append(_text(x + width / 2, TOP - 7, band.name, css="small"))
    return parts


def count_bars(names: Sequence[str], counts: Sequence[int], tail: set[int]) -> Markup:
    """Draw images per class; classes whose position is in ``tail`` are marked."""
    axis, scale = _y_axis(0, max(counts) * 1.08)
    step = (WIDTH - LEFT - RIGHT) / len(counts)
    parts = [*axis, *_class_labels(names, step)]
    for i, count in enumerate(counts):
        height = count * scale
        x, y = LEFT + i * step, HEIGHT - BOTTOM - height
        css = "bar tail" if i in tail else "bar"
        parts.append(_rect(x + step * 0.1, y, step * 0.8, height, css, f"{names[i]}: {count}"))
        if len(counts) <= 12:
            parts.append(_text(x + step / 2, y - 4, f"{count}", css="small"))
    label = f"Training images per class, from {max(counts)} to {min(counts)}; tail classes marked"
    return _chart(label, parts)


def class_lines(names: Sequence[str], series: Sequence[Series], bands: Sequence[Band]) -> Markup:
    """Draw accuracy per class (fractions of 1), a line for each network, over bands of classes."""
    axis, scale = _y_axis(0, 100, "%")
    step = (WIDTH - LEFT - RIGHT) / len(names)
    parts = [*_bands(bands, step), *axis, *_class_labels(names, step)]
    for one in reversed(series):  # the first series lies on top
        points = [
            Point(LEFT + (i + 0.5) * step, HEIGHT - BOTTOM - 100 * value * scale)
            for i, value in enumerate(one.values)
        ]
        parts.append(_polyline(points, one.style))
        if len(names) <= 40:
            tips = (
                f"{one.name}, {n}: {100 * v:.1f}%" for n, v in zip(names, one.values, strict=True)
            )
            parts += [
                _marker(x, y, one.style, tip) for (x, y), tip in zip(points, tips, strict=True)
            ]
    return _chart("Accuracy of every class, from the largest to the smallest class", parts)


def group_bars(groups: Sequence[str], series: Sequence[Series]) -> Markup:
    """Draw accuracies (fractions of 1) of groups of classes, bars side by side with deviations."""
    axis, scale = _y_axis(0, 100, "%")
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    width = step * 0.8 / len(series)
    parts = [*axis]
    for g, group in enumerate(groups):
        parts.append(_text(LEFT + (g + 0.5) * step, HEIGHT - BOTTOM + 20, group))
        for s, one in enumerate(series):
            value, spread = one.values[g], one.spreads[g] if one.spreads else 0.0
            if math.isnan(value):
                continue
            x = LEFT + g * step + step * 0.1 + s * width
            height = 100 * value * scale
            y = HEIGHT - BOTTOM - height
            tip = f"{one.name}, {group}: {100 * value:.1f}%"
            parts.append(_rect(x, y, width * 0.92, height, f"bar s{one.style}", tip))
            middle, arm = x + width * 0.46, 100 * spread * scale
            top = max(y - arm, TOP)  # a deviation may reach beyond the possible accuracies
            if spread:
                parts.append(_line(middle, top, middle, min(y + arm, HEIGHT - BOTTOM), "whisker"))
            parts.append(_text(middle, top - 4, f"{100 * value:.0f}", css="small"))
    return _chart("Accuracy by group of classes", parts)


def loss_lines(lines: Mapping[str, Sequence[Point]], x_name: str, label: str) -> Markup:
    """Draw losses over steps; on a logarithmic axis if they are positive and span decades."""
    lines = {
        name: _thin([p for p in points if math.isfinite(p.y)]) for name, points in lines.items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return Markup("")
    heights = [p.y for points in lines.values() for p in points]
    low, high = min(heights), max(heights)
    parts, place = _log_axis(low, high) if low > 0 and high > 30 * low else _loss_axis(low, high)
    last = max(p.x for points in lines.values() for p in points) or 1
    x_scale = (WIDTH - LEFT - RIGHT) / last
    below = HEIGHT - BOTTOM + 16
    steps = [x for x in ticks(0, last) if x == round(x)]
    parts += [_text(LEFT + x * x_scale, below, f"{x:,.0f}") for x in steps]
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 8, x_name))
    for style, points in enumerate(lines.values()):
        parts.append(_polyline([Point(LEFT + x * x_scale, place(y)) for x, y in points], style))
    return _chart(label, parts)


def _loss_axis(low: float, high: float) -> tuple[list[Markup], Callable[[float], float]]:
    """Return a linear axis that holds zero, and the height of a value."""
    low, high = min(0.0, low), high if high > min(0.0, low) else low + 1
    parts, scale = _y_axis(low, high)
    return parts, lambda y: HEIGHT - BOTTOM - (y - low) * scale


def _log_axis(low: float, high: float) -> tuple[list[Markup], Callable[[float], float]]:
    """Return a logarithmic axis and the height of a value."""
    bottom, top = math.log10(low), math.log10(high)
    scale = (HEIGHT - TOP - BOTTOM) / (top - bottom)

    def place(y: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(y) - bottom) * scale

    parts = [_text(LEFT - 6, TOP - 8, "log", "end", "small")]
    powers = range(math.floor(bottom), math.ceil(top) + 1)
    steps = (1,) if top - bottom > 2.5 else (1, 2, 5)
    for value in (step * 10.0**power for power in powers for step in steps):
        if low <= value <= high:
            y = place(value)
            parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "grid"))
            parts.append(_text(LEFT - 6, y + 4, f"{value:g}", "end"))
    return parts, place


def _polyline(points: Sequence[Point], style: int) -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline points="{}" class="line s{}"/>').format(path, style)


def _thin(points: Sequence[Point], most: int = 300) -> list[Point]:
    """Average neighbours until at most ``most`` points are left."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [Point(c[len(c) // 2].x, sum(p.y for p in c) / len(c)) for c in chunks]


def legend(styles: Mapping[str, int]) -> Markup:
    """Return the key to the lines or bars of a chart, from names and styles."""
    parts = [
        Markup(
            '<span class="key"><svg viewBox="0 0 26 12" aria-hidden="true">'
            '<line x1="1" y1="6" x2="25" y2="6" class="line s{}"/>{}</svg>{}</span>'
        ).format(style, _marker(13, 6, style, ""), name)
        for name, style in styles.items()
    ]
    return Markup('<p class="legend">{}</p>').format(Markup("").join(parts))
