"""One self-contained HTML page about a run, made from the files of its folder alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ltdd import charts
from ltdd.artifacts import DistilledSet, load, read_events, read_json, write_text
from ltdd.charts import Band, Point, Series
from ltdd.errors import UserError
from ltdd.pictures import class_cards, confusion, heat_map, mean_soft_labels

REPORT = "report.html"
_WHO = {
    "student": "distilled images",
    "random_real": "random real images",
    "full_long_tailed": "all long-tailed data",
    "teacher": "the teacher itself",
}
_GROUPS = ("head", "medium", "tail")


@dataclass(frozen=True)
class Scores:
    """Accuracies of one kind of network."""

    name: str
    style: int
    row: Mapping[str, Any]

    def percent(self, group: str) -> str:
        """Return ``61.2 ± 0.4``, the deviation only over several networks; - if empty."""
        score = self.row.get(group)
        if score is None:
            return "-"
        spread = f" ± {100 * score['std']:.1f}" if score["n"] > 1 else ""
        return f"{100 * score['mean']:.1f}{spread}"

    def mean(self, group: str) -> float:
        """Return the mean as a fraction, NaN for an empty group."""
        score = self.row.get(group)
        return float("nan") if score is None else float(score["mean"])

    def spread(self, group: str) -> float:
        """Return the standard deviation as a fraction."""
        score = self.row.get(group)
        return 0.0 if score is None else float(score["std"])


def write_report(out: Path) -> Path:
    """Write ``report.html`` into the folder of a finished run.

    Args:
        out: folder with ``manifest.json``, ``data.safetensors`` and ``results.json``; losses come
            from ``events.jsonl`` and initial and real images from ``stages``, if they are there.

    Returns:
        The path of the page: one file below 5 MB that asks for nothing else.

    Raises:
        UserError: the folder holds no finished run, or its files are damaged.
    """
    distilled = load(out)
    if distilled.results is None:
        raise UserError(f"expected a finished run in {out}, got one without results.json")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ltdd"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(_content(out, distilled))
    write_text(out / REPORT, page)
    return out / REPORT


def _content(out: Path, distilled: DistilledSet) -> dict[str, Any]:
    """Collect everything that the page shows."""
    results = distilled.results or {}
    names, counts = distilled.class_names, list(distilled.manifest["counts"])
    order = sorted(range(len(names)), key=lambda c: (-counts[c], c))
    scores = _scores(results)
    cards, hidden = class_cards(out, distilled, order, results["groups"])
    events = read_events(out / "events.jsonl") if (out / "events.jsonl").exists() else []
    return {
        "distilled": distilled,
        "results": results,
        "config": distilled.manifest["config"],
        "provenance": results.get("provenance", {}),
        "counts": counts,
        "size": _size(results["bytes"]["images"]),
        "label_size": _size(results["bytes"]["labels"]),
        "named": scores,
        "groups": {name: len(members) for name, members in results["groups"].items()},
        "chart_counts": charts.count_bars(
            [names[c] for c in order],
            [counts[c] for c in order],
            {i for i, c in enumerate(order) if c in results["groups"]["tail"]},
        ),
        "chart_groups": charts.group_bars(
            ("overall", *_GROUPS),
            [
                Series(
                    s.name,
                    [s.mean(g) for g in ("accuracy", *_GROUPS)],
                    s.style,
                    [s.spread(g) for g in ("accuracy", *_GROUPS)],
                )
                for s in scores.values()
            ],
        ),
        "chart_classes": charts.class_lines(
            [names[c] for c in order],
            [
                Series(s.name, [s.row["per_class"][c] for c in order], s.style)
                for s in scores.values()
            ],
            _class_bands(results["groups"]),
        ),
        "legend": charts.legend({s.name: s.style for s in scores.values()}),
        "cards": cards,
        "hidden": hidden,
        "soft_labels": heat_map(mean_soft_labels(distilled), order, names, "gives"),
        "confusion": heat_map(confusion(results), order, names, "predicts"),
        "losses": _losses(events),
        "stages": _stages(results["stages"]),
        "evaluations": _evaluations(out),
        "config_text": json.dumps(distilled.manifest["config"], indent=2),
        "files": distilled.manifest["files"],
        "folder": json.dumps(str(out)),
    }


def _scores(results: Mapping[str, Any]) -> dict[str, Scores]:
    rows = {"student": results["student"], **results["baselines"], "teacher": results["teacher"]}
    return {
        who: Scores(name, style, rows[who])
        for style, (who, name) in enumerate(_WHO.items())
        if who in rows
    }


def _class_bands(groups: Mapping[str, Sequence[int]]) -> list[Band]:
    """Return the bands of head, medium and tail when classes go from largest to smallest."""
    bands, start = [], 0
    for name in _GROUPS:
        end = start + len(groups[name])
        if end > start:
            bands.append(Band(name, start, end))
        start = end
    return bands


@dataclass(frozen=True)
class LossChart:
    """One chart of losses."""

    title: str
    chart: Markup
    legend: Markup


def _losses(events: Sequence[Mapping[str, Any]]) -> list[LossChart]:
    """Draw the losses of experts, recovery and students; a repeated step counts once."""
    experts: dict[str, dict[Any, float]] = {}
    recovery: dict[str, dict[Any, float]] = {}
    students: dict[str, dict[Any, float]] = {}
    for event in events:
        kind = event.get("event")
        if kind == "train":
            experts.setdefault(event["role"], {})[event["epoch"], 0] = event["loss"]
        elif kind == "recover":
            step = event["iteration"], event["batch"]
            for name in ("loss", "alignment", "cross_entropy"):
                if name in event:
                    recovery.setdefault(name.replace("_", "-"), {})[step] = event[name]
        elif kind == "student":
            step = event["epoch"], event["seed"]
            students.setdefault(event["who"], {})[step] = event["loss"]
    wanted = [
        ("Expert training", experts, "epoch"),
        ("Recovery of the images", recovery, "iteration"),
        ("Student training", students, "epoch"),
    ]
    found = []
    for title, values, x_name in wanted:
        lines = {_WHO.get(name, name): _mean_line(steps) for name, steps in values.items()}
        chart = charts.loss_lines(lines, x_name, f"{title}: loss over every {x_name}")
        if chart:
            found.append(
                LossChart(
                    title, chart, charts.legend({name: style for style, name in enumerate(lines)})
                )
            )
    return found


def _mean_line(steps: Mapping[tuple[int, int], float]) -> list[Point]:
    """Average over batches or seeds, which are the second part of a step."""
    sums: dict[int, list[float]] = {}
    for (x, _), y in steps.items():
        if isinstance(y, (int, float)):
            sums.setdefault(x, []).append(y)
    return [Point(x, sum(ys) / len(ys)) for x, ys in sorted(sums.items())]


def _stages(stages: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    total = sum(stage["seconds"] for stage in stages.values()) or 1.0
    return [
        {
            "name": name,
            "time": _duration(stage["seconds"]),
            "share": 100 * stage["seconds"] / total,
            "memory": _size(stage["peak_bytes"]),
        }
        for name, stage in [*stages.items(), ("all", _total(stages))]
    ]


def _total(stages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "peak_bytes": max((stage["peak_bytes"] for stage in stages.values()), default=0),
    }


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes / 60:.1f} h"


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} bytes"
    power = min(3, int(math.log10(count) // 3))
    return f"{count / 1000**power:.3g} {('', 'kB', 'MB', 'GB')[power]}"


def _evaluations(out: Path) -> list[tuple[str, str, Scores]]:
    """Return further students of ``ltdd evaluate``: architecture, labels, accuracies."""
    found = []
    for file in sorted((out / "evaluations").glob("*.json")):
        student = read_json(file)["student"]
        found.append((student["arch"], student["labels"], Scores(file.stem, 0, student)))
    return found
