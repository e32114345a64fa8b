"""Tables in Markdown, padded so that they are as readable in a terminal as on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltdd.data.reading.originals import Originals

GROUP_COLUMNS = {
    "accuracy": "overall",
    "head": "head",
    "medium": "medium",
    "tail": "tail",
    "many_shot": "many",
    "medium_shot": "med. shot",
    "few_shot": "few",
}
"""Field of an accuracy report -> title of its column."""
_LISTED = 5  # classes that a sentence names


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is flush left, all others flush right.

    Args:
        header: titles of the columns.
        rows: cells as text, as many in each row as there are titles.
    """
    lines = [[cell.replace("|", "/") for cell in line] for line in (header, *rows)]
    widths = [max(3, *(len(line[c]) for line in lines)) for c in range(len(header))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]

    def text(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    return "\n".join(text(line) for line in (lines[0], rule, *lines[1:]))


def unmeasured(results: Mapping[str, Any]) -> str:
    """Return a sentence about classes without test images, an empty string if there are none.

    Args:
        results: the content of ``results.json``.
    """
    per_class = results["student"].get("per_class", ())
    if None not in per_class:
        return ""
    absent = [n for n, a in zip(results["class_names"], per_class, strict=True) if a is None]
    names = ", ".join(absent[:_LISTED]) + (
        f" and {len(absent) - _LISTED} more" if len(absent) > _LISTED else ""
    )
    return (
        f"{len(absent)} of {len(per_class)} classes have no test images and are not measured "
        f"({names}); all accuracies are of the other {len(per_class) - len(absent)}"
    )


def found_images(results: Mapping[str, Any]) -> str:
    """Return the sizes of the real images before they became squares, and how they did.

    Args:
        results: the content of ``results.json``; an empty string where it does not say.
    """
    values = results.get("originals")
    return Originals.from_dict(values).described if values else ""


def percent(score: Mapping[str, Any] | None) -> str:
    """Return ``61.2 ± 0.4`` for a mean over several networks, ``61.2`` for one, - for none."""
    if score is None:
        return "-"
    spread = f" ± {100 * score['std']:.1f}" if score["n"] > 1 else ""
    return f"{100 * score['mean']:.1f}{spread}"


def architecture_tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what students of several architectures reach: by groups, and class by class.

    Args:
        results: architecture -> content of ``results.json``.
    """
    first = next(iter(results.values()))
    header = ["accuracy in %", *GROUP_COLUMNS.values()]
    rows = [
        [name, *(percent(row["student"].get(group)) for group in GROUP_COLUMNS)]
        for name, row in results.items()
    ]
    rows.append(["teacher", *(percent(first["teacher"].get(group)) for group in GROUP_COLUMNS)])
    classes = [
        [
            name,
            str(count),
            *(_fraction(r["student"]["per_class"][c]) for r in results.values()),
        ]
        for c, (name, count) in enumerate(zip(first["class_names"], first["counts"], strict=True))
    ]
    by_class = markdown_table(["class", "images", *results], classes)
    parts = [markdown_table(header, rows), *_robust_scores(results), by_class, unmeasured(first)]
    return "\n\n".join(part for part in parts if part)


def _fraction(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


_ROBUST_SCORES = {
    "LRS": ("lrs", "lrs"),
    "HLR": ("lrs", "hlr"),
    "IOR": ("lrs", "ior"),
    "ARS": ("ars", "ars"),
}


def _robust_scores(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a table of the scores that were computed, as a list of no or one element."""
    first = next(iter(results.values()))["robustness"]
    columns = [title for title, (kind, _) in _ROBUST_SCORES.items() if kind in first]
    if not columns:
        return []
    rows = []
    for name, result in results.items():
        places = [_ROBUST_SCORES[column] for column in columns]
        rows.append([name, *(percent(result["robustness"][kind][s]) for kind, s in places)])
    return [markdown_table(["times 100", *columns], rows)]
