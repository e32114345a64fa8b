"""Charts of what happened during a run: losses over steps, and statistics over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltdd.results.pages import charts
from ltdd.results.pages.accuracy_charts import WHO
from ltdd.results.pages.charts import Chart, Point

_STATISTICS = {
    "distilled": "distilled, in crops",
    "running": "running",
    "published": "distilled, whole",
    "pooled": "pooled",
    "start": "start, in crops",
}


def loss_charts(events: Sequence[Mapping[str, Any]]) -> dict[str, Chart]:
    """Draw the losses of experts, recovery and students; a repeated step counts once.

    Returns:
        Title -> chart, for the stages that have events.
    """
    experts: dict[str, dict[Any, float]] = {}
    recovery: dict[str, dict[Any, float]] = {}
    students: dict[str, dict[Any, float]] = {}
    for event in events:
        kind = event.get("event")
        if kind == "train":
            step = event["epoch"], event.get("seed", 0)
            experts.setdefault(event["role"], {})[step] = event["loss"]
        elif kind == "recover":
            step = event["iteration"], event["batch"]
            for name in ("loss", "alignment", "cross_entropy", "backbone", "classifier"):
                if name in event:
                    recovery.setdefault(name.replace("_", "-"), {})[step] = event[name]
        elif kind == "student":
            step = event["epoch"], event["seed"]
            students.setdefault(event["who"], {})[step] = event["loss"]
    wanted = {
        "Expert training": ("expert_losses", experts, "epoch"),
        "Recovery of the images": ("recovery_losses", recovery, "iteration"),
        "Student training": ("student_losses", students, "epoch"),
    }
    drawn = {}
    for title, (name, values, x_title) in wanted.items():
        lines = {WHO.get(key, key): _mean_line(steps) for key, steps in values.items()}
        label = f"{title}: loss over every {x_title}"
        drawn[title] = charts.step_lines(name, label, lines, x_title, "loss")
    return {title: chart for title, chart in drawn.items() if chart is not None}


def _mean_line(steps: Mapping[tuple[int, int], float]) -> list[Point]:
    """Average over batches or seeds, which are the second part of a step."""
    sums: dict[int, list[float]] = {}
    for (x, _), y in steps.items():
        if isinstance(y, (int, float)):
            sums.setdefault(x, []).append(y)
    return [Point(x, sum(ys) / len(ys)) for x, ys in sorted(sums.items())]


def drift_charts(drift: Sequence[Mapping[str, Any]]) -> dict[str, Chart]:
    """Draw how far each kind of statistics is from the fair ones, layer by layer.

    Args:
        drift: a result of `drift.layer_drift`.

    Returns:
        Title -> chart.
    """
    layers = [row["layer"] for row in drift]

    def lines(part: str, kinds: Sequence[str]) -> dict[str, list[Point]]:
        scale, origin = (100.0, 1.0) if part == "spread" else (1.0, 0.0)
        return {
            _STATISTICS[kind]: [
                Point(number, scale * (row[kind][part] - origin))
                for number, row in enumerate(drift, 1)
            ]
            for kind in kinds
        }

    wanted = {
        "Means": ("drift_means", "mean", "distance in standard deviations"),
        "Variances": ("drift_variances", "spread", "typical error in %"),
    }
    drawn = {}
    for title, (name, part, y_title) in wanted.items():
        label = f"{title} of every layer: distance from the fair, class-balanced statistics"
        drawn[title] = charts.step_lines(
            name, label, lines(part, list(_STATISTICS)), "batch-norm layer", y_title, layers
        )
    return {title: chart for title, chart in drawn.items() if chart is not None}


def drift_summary(drift: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the average over layers of every distance, by kind and part."""
    kinds = {kind: drift[0][kind] for kind in _STATISTICS}
    return {
        kind: {part: sum(row[kind][part] for row in drift) / len(drift) for part in parts}
        for kind, parts in kinds.items()
    }
