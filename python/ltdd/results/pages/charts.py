"""Draw the charts of the report as SVG.

They are inline in the page, whose light or dark colours they follow, and files of their own.
Names are escaped, so every chart is safe to put into a page. Colours come from ``chart.css``
(``s0`` to ``s7`` for series); shape and dash also tell the series apart, and every chart carries
its numbers as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from markupsafe import Markup

from ltdd.results.pages.svg import bar, line, marker, polyline, text, ticks

# One drawing unit is one CSS pixel at full width; on a phone a chart shrinks to about two thirds,
# which leaves its 13-pixel labels readable.
WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 36, 62
STYLES = 8
_FLOOR = HEIGHT - BOTTOM
_ROWS = 12  # of the numbers behind a line


class Point(NamedTuple):
    """One point of a line."""

    x: float
    y: float


@dataclass(frozen=True)
class Series:
    """Values of one network; ``style`` 0..7 picks colour, dash and marker."""

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


@dataclass(frozen=True)
class Chart:
    """A drawing with its text alternatives.

    Attributes:
        name: stem of its file.
        label: what it shows, in one sentence.
        parts: what is drawn.
        columns, rows: the same numbers as a table; the first column names the row.
        styles: series -> style, for the legend.
        height: in drawing units.
    """

    name: str
    label: str
    parts: Sequence[Markup]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Mapping[str, int] = field(default_factory=dict)
    height: int = HEIGHT

    @property
    def inline(self) -> Markup:
        """The drawing for a page that has the style sheet."""
        head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, self.height, self.label
        )
        return head + Markup("").join(self.parts) + Markup("</svg>")

    @property
    def legend(self) -> Markup:
        """The key to lines or bars, for the page."""
        keys = [
            Markup(
                '<span class="key"><svg viewBox="0 0 26 12" aria-hidden="true">{}{}</svg>{}</span>'
            ).format(line(1, 6, 25, 6, f"line s{style}"), marker(13, 6, style), name)
            for name, style in self.styles.items()
        ]
        return (
            Markup('<p class="legend">{}</p>').format(Markup("").join(keys)) if keys else Markup()
        )

    def document(self, style_sheet: str) -> str:
        """Return the drawing with its legend as a file of its own."""
        height = self.height + 20 * len(self.styles)
        parts = list(self.parts)
        for row, (name, style) in enumerate(self.styles.items()):
            y = self.height + 20 * row + 6
            parts.append(line(LEFT, y, LEFT + 26, y, f"line s{style}"))
            parts += [marker(LEFT + 13, y, style), text(LEFT + 34, y + 4, name, "start")]
        return str(
            Markup(
                '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" '
                'height="{1}" role="img"><title>{2}</title><style>{3}</style>'
                '<rect width="{0}" height="{1}" fill="#fff"/>{4}</svg>\n'
            ).format(WIDTH, height, self.label, Markup(style_sheet), Markup("").join(parts))
        )


def count_bars(names: Sequence[str], counts: Sequence[int], tail: set[int]) -> Chart:
    """Draw images per class; classes whose position is in ``tail`` are marked."""
    axis, scale = _y_axis(0, max(counts) * 1.08, "training images")
    step = (WIDTH - LEFT - RIGHT) / len(counts)
    parts = [*axis, *_class_axis(names, step)]
    for i, count in enumerate(counts):
        height = count * scale
        x, y = LEFT + i * step, _FLOOR - height
        css = "bar tail" if i in tail else "bar"
        parts.append(bar(x + step * 0.1, y, step * 0.8, height, css, f"{names[i]}: {count}"))
        if len(counts) <= 12:
            parts.append(text(x + step / 2, y - 4, f"{count}", css="small"))
    label = f"Training images per class, from {max(counts)} to {min(counts)}; tail classes marked"
    rows = [
        [name, f"{count}", "yes" if i in tail else ""]
        for i, (name, count) in enumerate(zip(names, counts, strict=True))
    ]
    return Chart("class_counts", label, parts, ["class", "training images", "tail"], rows)


def class_lines(names: Sequence[str], series: Sequence[Series], bands: Sequence[Band]) -> Chart:
    """Draw accuracy per class (fractions of 1), a line for each network, over bands of classes."""
    axis, scale = _y_axis(0, 100, "test accuracy in %")
    step = (WIDTH - LEFT - RIGHT) / len(names)
    parts = [*_bands(bands, step), *axis, *_class_axis(names, step)]
    for one in reversed(series):  # the first series lies on top
        points = [
            (LEFT + (i + 0.5) * step, _FLOOR - 100 * value * scale)
            for i, value in enumerate(one.values)
            if not math.isnan(value)
        ]
        parts.append(polyline(points, one.style))
        if len(names) <= 40:
            tips = (
                f"{one.name}, {n}: {_percent(v)}"
                for n, v in zip(names, one.values, strict=True)
                if not math.isnan(v)
            )
            parts += [marker(*p, one.style, tip) for p, tip in zip(points, tips, strict=True)]
    return Chart(
        "class_accuracy",
        "Test accuracy of every class in percent, from the largest to the smallest class",
        parts,
        ["class", *(one.name for one in series)],
        [[name, *(_percent(one.values[i]) for one in series)] for i, name in enumerate(names)],
        {one.name: one.style for one in series},
    )


def group_bars(groups: Sequence[str], series: Sequence[Series]) -> Chart:
    """Draw accuracies (fractions of 1) of groups of classes, bars side by side with deviations."""
    axis, scale = _y_axis(0, 100, "test accuracy in %")
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    width = step * 0.84 / len(series)
    parts = [*axis, text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "group of classes")]
    for g, group in enumerate(groups):
        parts.append(text(LEFT + (g + 0.5) * step, _FLOOR + 20, group))
        for s, one in enumerate(series):
            value, spread = one.values[g], one.spreads[g] if one.spreads else 0.0
            if math.isnan(value):
                continue
            x = LEFT + g * step + step * 0.08 + s * width
            height = 100 * value * scale
            y, tip = _FLOOR - height, f"{one.name}, {group}: {_percent(value)}"
            parts.append(bar(x, y, width * 0.92, height, f"bar s{one.style}", tip))
            middle, arm = x + width * 0.46, 100 * spread * scale
            top = max(y - arm, TOP)  # a deviation may reach beyond the possible accuracies
            if spread:
                parts.append(line(middle, top, middle, min(y + arm, _FLOOR), "whisker"))
            if width > 14:
                parts.append(text(middle, top - 4, f"{100 * value:.0f}", css="small"))
    return Chart(
        "group_accuracy",
        "Test accuracy in percent by group of classes",
        parts,
        ["group", *(one.name for one in series)],
        [[group, *(_percent(one.values[g]) for one in series)] for g, group in enumerate(groups)],
        {one.name: one.style for one in series},
    )


def step_lines(
    name: str,
    label: str,
    lines: Mapping[str, Sequence[Point]],
    x_title: str,
    y_title: str,
    row_names: Sequence[str] = (),
) -> Chart | None:
    """Draw lines over whole steps; on a logarithmic axis if they are positive and span decades.

    Args:
        name, label: of the chart.
        lines: their points, with equal x where they are to share a row of the table.
        x_title, y_title: of the axes, with the unit.
        row_names: with them, every x is marked and its row in the table is called
            ``row_names[x - 1]``.

    Returns:
        None if no value is finite.
    """
    lines = {key: _thin([p for p in points if math.isfinite(p.y)]) for key, points in lines.items()}
    lines = {key: points for key, points in lines.items() if points}
    if not lines:
        return None
    heights = [p.y for points in lines.values() for p in points]
    low, high = min(heights), max(heights)
    logarithmic = low > 0 and high > 30 * low
    parts, place = (_log_axis if logarithmic else _linear_axis)(low, high, y_title)
    first = 1 if row_names else 0
    last = max(max(p.x for points in lines.values() for p in points), first + 1)
    scale = (WIDTH - LEFT - RIGHT - 12) / (last - first)

    def across(x: float) -> float:
        return LEFT + 6 + (x - first) * scale

    steps = [x for x in ticks(first, last, 6) if x == round(x)]
    parts += [text(across(x), _FLOOR + 18, f"{x:,.0f}") for x in steps]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 20, x_title))
    for style, (key, points) in enumerate(lines.items()):
        places = [(across(x), place(y)) for x, y in points]
        parts.append(polyline(places, style))
        if row_names and len(points) <= 60:
            parts += [
                marker(*at, style, f"{key}, {row_names[int(p.x) - 1]}: {p.y:.3g}")
                for at, p in zip(places, points, strict=True)
            ]
    every = 1 if row_names else math.ceil(max(map(len, lines.values())) / _ROWS)
    values = {key: dict(points) for key, points in lines.items()}
    xs = sorted({x for points in values.values() for x in points})
    shown = xs if row_names else [*xs[:-1:every], xs[-1]]
    rows = [
        [
            row_names[int(x) - 1] if row_names else f"{x:,.0f}",
            *(f"{points[x]:.4g}" if x in points else "" for points in values.values()),
        ]
        for x in shown
    ]
    styles = {key: style for style, key in enumerate(lines)}
    return Chart(name, label, parts, [x_title, *values], rows, styles)


def matrix(
    name: str,
    label: str,
    names: Sequence[str],
    cells: Sequence[Sequence[float]] | None,
    picture: str,
    titles: tuple[str, str],
) -> Chart:
    """Draw a table of classes against classes as shades, with numbers if ``cells`` are given.

    Args:
        name, label: of the chart.
        names: of the classes, in the order of rows and columns.
        cells: fractions of 1, a row for each class; None leaves the numbers out.
        picture: data URI of the shades, used without ``cells``.
        titles: what rows and columns are.
    """
    left, top, side = 92, 30, WIDTH - 92 - 10
    step = side / len(names)
    parts = [text(left + side / 2, 14, titles[1])]
    parts.append(
        Markup('<text transform="translate(12 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>')
        .format(top + side / 2, titles[0])
    )  # fmt: skip
    if cells is None:
        parts.append(
            Markup('<image href="{}" x="{}" y="{}" width="{}" height="{}" class="shades"/>').format(
                picture, left, top, side, side
            )
        )
    for r, row in enumerate(cells or ()):
        for c, value in enumerate(row):
            x, y, tip = (
                left + c * step,
                top + r * step,
                f"{names[r]}, {names[c]}: {_percent(value)}",
            )
            parts.append(bar(x, y, step, step, "cell", tip, opacity=0.65 * value))
            if value >= 0.005:
                size = "" if step > 30 else "small"
                parts.append(text(x + step / 2, y + step / 2 + 4, f"{100 * value:.0f}", css=size))
    every = max(1, math.ceil(13 / step))
    for i in range(0, len(names), every):
        short = _short(names[i])
        parts.append(text(left - 5, top + (i + 0.5) * step + 4, short, "end", "small"))
        parts.append(_slanted(left + (i + 0.5) * step + 3, top + side + 12, short))
    columns = [titles[0], *names] if cells else []
    rows = [[names[r], *(_percent(v) for v in row)] for r, row in enumerate(cells or ())]
    return Chart(name, label, parts, columns, rows, height=top + side + 52)


def _percent(fraction: float) -> str:
    return "" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def _y_axis(low: float, high: float, title: str) -> tuple[list[Markup], float]:
    """Return grid lines with labels, and the pixels of one unit."""
    scale = (HEIGHT - TOP - BOTTOM) / (high - low)
    parts = [text(4, 13, title, "start")]
    for value in ticks(low, high):
        y = _FLOOR - (value - low) * scale
        parts.append(line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(text(LEFT - 6, y + 4, f"{value:,.6g}", "end"))
    return parts, scale


def _linear_axis(
    low: float, high: float, title: str
) -> tuple[list[Markup], Callable[[float], float]]:
    """Return a linear axis that holds zero, and the height of a value."""
    low, high = min(0.0, low), high if high > min(0.0, low) else low + 1
    parts, scale = _y_axis(low, high, title)
    return parts, lambda y: _FLOOR - (y - low) * scale


def _log_axis(low: float, high: float, title: str) -> tuple[list[Markup], Callable[[float], float]]:
    """Return a logarithmic axis and the height of a value."""
    bottom, top = math.log10(low), math.log10(high)
    scale = (HEIGHT - TOP - BOTTOM) / (top - bottom)

    def place(y: float) -> float:
        return _FLOOR - (math.log10(y) - bottom) * scale

    parts = [text(4, 13, f"{title}, logarithmic", "start")]
    powers = range(math.floor(bottom), math.ceil(top) + 1)
    steps = (1,) if top - bottom > 2.5 else (1, 2, 5)
    for value in (step * 10.0**power for power in powers for step in steps):
        if low <= value <= high:
            y = place(value)
            parts.append(line(LEFT, y, WIDTH - RIGHT, y, "grid"))
            parts.append(text(LEFT - 6, y + 4, f"{value:g}", "end"))
    return parts, place


def _class_axis(names: Sequence[str], step: float) -> list[Markup]:
    """Label the classes below the axis; only some of them when they are many."""
    every = max(1, math.ceil(len(names) * 16 / (WIDTH - LEFT - RIGHT)))
    parts = [text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "class, most training images first")]
    level = every == 1 and 7 * min(9, max(map(len, names))) < step
    for i in range(0, len(names), every):
        x, y, short = LEFT + (i + 0.5) * step, _FLOOR + 14, _short(names[i])
        parts.append(text(x, y + 4, short) if level else _slanted(x + 3, y - 4, short))
    return parts


def _short(name: str) -> str:
    return name if len(name) <= 10 else name[:9] + "…"


def _slanted(x: float, y: float, words: str) -> Markup:
    return Markup(
        '<text transform="translate({:.1f} {:.1f}) rotate(-38)" text-anchor="end" class="small">'
        "{}</text>"
    ).format(x, y, words)


def _bands(bands: Sequence[Band], step: float) -> list[Markup]:
    parts = []
    for number, band in enumerate(bands):
        x, width = LEFT + band.start * step, (band.end - band.start) * step
        parts.append(bar(x, TOP, width, HEIGHT - TOP - BOTTOM, f"band{number % 3}", band.name))
        if width > 36:
            parts.append(text(x + width / 2, TOP - 6, band.name, css="small"))
    return parts


def _thin(points: Sequence[Point], most: int = 300) -> list[Point]:
    """Average neighbours until at most ``most`` points are left."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [Point(c[len(c) // 2].x, sum(p.y for p in c) / len(c)) for c in chunks]
