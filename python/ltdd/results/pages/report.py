"""One self-contained HTML page about a run, made from the files of its folder alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltdd.engine.storage.files import read_json, write_bytes, write_text
from ltdd.engine.watching.events import EVENTS, read_events
from ltdd.errors import UserError
from ltdd.results.distilled_set import DistilledSet, load
from ltdd.results.method import method_of
from ltdd.results.nearness import class_rows, describe_nearness, overall_rows
from ltdd.results.pages import charts
from ltdd.results.pages.accuracy_charts import Scores, class_chart, group_chart, scores_of
from ltdd.results.pages.charts import Chart
from ltdd.results.pages.galleries import (
    confusion,
    gallery,
    grids,
    heat_map,
    mean_soft_labels,
    run_images,
)
from ltdd.results.pages.nearest_pairs import nearest_pairs, pair_grids
from ltdd.results.pages.rendering import chart_style, render
from ltdd.results.pages.run_charts import drift_charts, drift_summary, loss_charts
from ltdd.results.tables import found_images, unmeasured
from ltdd.results.terminal import total_cost
from ltdd.stages.metrics import THIRDS

REPORT, FIGURES = "report.html", "report"
_CONFUSIONS = {
    "student": "Predictions of the students",
    "random_real": "Predictions after training on random real images",
    "full_long_tailed": "Predictions after training on all long-tailed data",
    "teacher": "Predictions of the teacher",
}


def write_report(out: Path) -> Path:
    """Write ``report.html`` into the folder of a finished run, and its figures to ``report/``.

    Charts are drawn once, as SVG: inline in the page and as a file each. Grids of images are PNG
    files.

    Args:
        out: folder with ``manifest.json``, ``data.safetensors`` and ``results.json``; losses come
            from ``events.jsonl`` and initial and real images from ``stages``, if they are there.

    Returns:
        The path of the page: one file below 5 MB that asks for nothing else.

    Raises:
        UserError: the folder holds no finished run, or its files are damaged.
    """
    content = _content(out, load_finished(out))
    write_text(out / REPORT, render("report.html.j2", content))
    style = chart_style()
    drawn: Sequence[Mapping[str, Chart]] = [
        content[name] for name in ("charts", "confusions", "losses", "drift_charts")
    ]
    for chart in (chart for group in drawn for chart in group.values()):
        write_text(out / FIGURES / f"{chart.name}.svg", chart.document(style))
    for kind, picture in grids(content["gallery"].cards).items():
        write_bytes(out / FIGURES / f"images_{kind}.png", picture)
    if content["nearest"] is not None:
        for measure, picture in pair_grids(content["nearest"]["pairs"]).items():
            write_bytes(out / FIGURES / f"nearest_{measure}.png", picture)
    return out / REPORT


def load_finished(out: Path) -> DistilledSet:
    """Read the distilled set of a run that has been evaluated.

    Raises:
        UserError: the folder holds no finished run, or its files are damaged.
    """
    distilled = load(out)
    if distilled.results is None:
        raise UserError(f"expected a finished run in {out}, got one without results.json")
    return distilled


def class_order(counts: Sequence[int]) -> list[int]:
    """Return the labels from the largest to the smallest class."""
    return sorted(range(len(counts)), key=lambda label: (-counts[label], label))


def _content(out: Path, distilled: DistilledSet) -> dict[str, Any]:
    """Collect everything that the page shows."""
    results = distilled.results or {}
    names, counts = distilled.class_names, list(distilled.manifest["counts"])
    order, groups = class_order(counts), results["groups"]
    scores = scores_of(results)
    events = read_events(out / EVENTS) if (out / EVENTS).exists() else []
    drift = results.get("drift")
    tail = {i for i, c in enumerate(order) if c in groups["tail"]}
    test_titles = ("true class of the test image", "predicted class")
    label_titles = ("class of the distilled image", "probability given by the teacher")
    return {
        "distilled": distilled,
        "results": results,
        "config": distilled.manifest["config"],
        "method": method_of(distilled),
        "provenance": results.get("provenance", {}),
        "unmeasured": unmeasured(results),
        "found": found_images(results),
        "counts": counts,
        "training_bytes": sum(counts) * distilled.images[0].numel(),
        "named": scores,
        "groups": {name: len(members) for name, members in groups.items()},
        "charts": {
            "counts": charts.count_bars(
                [names[c] for c in order], [counts[c] for c in order], tail
            ),
            "groups": group_chart(list(scores.values())),
            "classes": class_chart(list(scores.values()), names, order, groups),
            "soft_labels": heat_map(
                "soft_labels", mean_soft_labels(distilled), order, names, "gives", label_titles
            ),
        },
        "confusions": {
            who: heat_map(
                f"confusion_{who}", confusion(results, who), order, names, "predicts", test_titles
            )
            for who in _CONFUSIONS
            if who in results["confusion"]
        },
        "confusion_titles": _CONFUSIONS,
        "gallery": gallery(run_images(out, distilled), order, names, _class_notes(counts, groups)),
        "nearest": _nearness(out, distilled, order),
        "losses": loss_charts(events),
        "layers": len(drift or ()),
        "drift": drift_summary(drift) if drift else None,
        "drift_charts": drift_charts(drift) if drift else {},
        "stages": results["stages"],
        "total": total_cost(results["stages"]),
        "evaluations": _evaluations(out),
        "config_text": json.dumps(distilled.manifest["config"], indent=2),
        "folder": json.dumps(str(out)),
    }


def _class_notes(counts: Sequence[int], groups: Mapping[str, Sequence[int]]) -> list[str]:
    group_of = {c: name for name in THIRDS for c in groups[name]}
    return [
        f"{group_of[c]}, {count} training image{'s' if count != 1 else ''}"
        for c, count in enumerate(counts)
    ]


def _nearness(out: Path, distilled: DistilledSet, order: Sequence[int]) -> dict[str, Any] | None:
    """Return how near the images are to real ones; None for a run that has not measured it."""
    nearest = (distilled.results or {}).get("nearest")
    if nearest is None:
        return None
    classes = class_rows(nearest, distilled.class_names)
    return {
        "told": describe_nearness(nearest),
        "overall": overall_rows(nearest),
        "classes": {distance: [rows[c] for c in order] for distance, rows in classes.items()},
        "training_images": nearest["training_images"],
        "sampled": nearest["sampled"],
        "features": nearest["features_of"],
        "pairs": nearest_pairs(out, distilled),
    }


def _evaluations(out: Path) -> list[Scores]:
    """Return further students of ``ltdd evaluate``, named by architecture and labels."""
    rows = [read_json(file)["student"] for file in sorted((out / "evaluations").glob("*.json"))]
    return [Scores(f"{row['arch']}, {row['labels']}", 0, row) for row in rows]
