"""One self-contained HTML page about the sets of several methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltdd.engine.storage.files import write_text
from ltdd.results.distilled_set import DistilledSet, load
from ltdd.results.pages.accuracy_charts import Scores, group_chart
from ltdd.results.pages.charts import STYLES, Chart
from ltdd.results.pages.galleries import ImagesOfClass, gallery
from ltdd.results.pages.rendering import render
from ltdd.results.pages.report import class_order
from ltdd.results.systems_tables import (
    COSTS,
    EXPLANATION,
    accuracy_table,
    cost_table,
    group_tables,
)
from ltdd.results.tables import percent


def write_systems_page(study: Mapping[str, Any], out: Path) -> Path:
    """Write ``systems.html`` beside the folders of the methods.

    Args:
        study: the content of ``systems.json``.
        out: the folder that holds those of the methods.

    Returns:
        The path of the page: one file below 5 MB that asks for nothing else.
    """
    sets = {s["recipe"]: load(out / s["folder"]) for s in study["systems"]}
    order = class_order(study["counts"])
    notes = [f"training images: {count}" for count in study["counts"]]
    kinds = {name: _images(distilled) for name, distilled in sets.items()}
    content = {
        "systems": study["systems"],
        "class_names": study["class_names"],
        "ipc": study["ipc"],
        "images": sum(study["counts"]),
        "teacher": percent(study["teacher"]["accuracy"]),
        "accuracy": accuracy_table(study),
        "groups": group_tables(study),
        "costs": cost_table(study),
        "told": {"accuracy": EXPLANATION, "costs": COSTS},
        "charts": _charts(study),
        "gallery": gallery(kinds, order, study["class_names"], notes),
        "origin": study["provenance"],
    }
    page = out / "systems.html"
    write_text(page, render("systems.html.j2", content))
    return page


def _images(distilled: DistilledSet) -> ImagesOfClass:
    return lambda label: distilled.images[distilled.labels == label]


def _charts(study: Mapping[str, Any]) -> dict[str, Chart]:
    """Draw every column; with more methods than colours the tables have to do."""
    systems = study["systems"]
    if len(systems) > STYLES:
        return {}
    return {
        name: group_chart(
            [Scores(s["recipe"], style, s["columns"][name]) for style, s in enumerate(systems)]
        )
        for name in study["columns"]
    }
