"""One self-contained HTML page about a run, made from the files of its folder alone."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ltdd import charts
from ltdd.artifacts import DistilledSet, load, read_events, read_json, read_tensors, write_text
from ltdd.charts import Band, Point, Series
from ltdd.errors import UserError

REPORT = "report.html"
# The page stays below 5 MB: pictures take at most this many raw bytes before they are compressed.
_PICTURE_BYTES = 2_500_000
_SHOWN = 10  # images of a class
_SIDE = 64  # larger images are shrunk to this side

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
    cards, hidden = _cards(out, distilled, order, results["groups"])
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
        "soft_labels": _heat_map(_mean_soft_labels(distilled), order, names, "gives"),
        "confusion": _heat_map(_confusion(results), order, names, "predicts"),
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
class Card:
    """The pictures of one class."""

    name: str
    count: int
    group: str
    rows: list[tuple[str, str, str, float]]  # caption, alternative text, data URI, width in %


def _cards(
    out: Path,
    distilled: DistilledSet,
    order: Sequence[int],
    groups: Mapping[str, Sequence[int]],
) -> tuple[list[Card], int]:
    """Draw initial, distilled and real images of as many classes as the page has room for.

    Returns:
        The cards from the largest to the smallest class, and how many classes were left out.
    """
    initial, real = _initial_images(out, distilled)
    side = min(_SIDE, distilled.images.shape[-1])
    ipc = max(1, len(distilled) // len(distilled.class_names))
    pictures = min(ipc, _SHOWN) * (2 if initial is not None else 1) + 5
    room = max(2, _PICTURE_BYTES // (pictures * side * side * distilled.images.shape[1]))
    chosen = list(order)
    if room < len(order):  # evenly from head to tail, both ends included
        chosen = [order[round(i * (len(order) - 1) / (room - 1))] for i in range(room)]
    cards = []
    for label in chosen:
        name = distilled.class_names[label]
        members = torch.nonzero(distilled.labels == label).flatten()[:_SHOWN]
        strips = [("start", initial[members])] if initial is not None else []
        strips.append(("distilled", distilled.images[members]))
        if real is not None:
            # a smaller class repeats its images to fill the row
            strips.append(("real", real[label][: distilled.manifest["counts"][label]]))
        # One scale for all strips of a card; few images are not blown up to the full width.
        slots = max(5, *(len(images) for _, images in strips))
        rows = [
            (
                kind,
                f"{kind} images of class {name}, {len(images)} in a row",
                _strip(images, side),
                100 * len(images) / slots,
            )
            for kind, images in strips
        ]
        group = next(g for g in _GROUPS if label in groups[g])
        count = distilled.manifest["counts"][label]
        cards.append(Card(name, count, group, rows))
    return cards, len(order) - len(cards)


def _initial_images(out: Path, distilled: DistilledSet) -> tuple[Tensor | None, Tensor | None]:
    """Return the images before recovery and real examples as uint8, if their file is there."""
    files = sorted((out / "stages").glob("initialization-*.safetensors"))
    for file in sorted(files, key=lambda f: f.stat().st_mtime, reverse=True):
        tensors, _ = read_tensors(file)
        if tensors["images"].shape == distilled.images.shape:
            initial = (tensors["images"].clamp(0, 1) * 255).round().to(torch.uint8)
            return initial, tensors.get("real_examples")
    return None, None


def _strip(images: Tensor, side: int) -> str:
    """Return a PNG data URI of uint8 images (N, C, H, W) in one row, with transparent gaps."""
    zoom = max(1, 32 // side)  # whole steps, so that pixels stay squares
    cell = side * zoom
    gap = max(1, cell // 16)
    row = Image.new("RGBA", ((cell + gap) * len(images) - gap, cell))
    for position, image in enumerate(images):
        pixels = image.permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        method = Image.Resampling.LANCZOS if picture.width > cell else Image.Resampling.NEAREST
        row.paste(picture.resize((cell, cell), method), (position * (cell + gap), 0))
    return _data_uri(row)


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


Matrix = npt.NDArray[np.float64]


def _mean_soft_labels(distilled: DistilledSet) -> Matrix:
    """Return the mean softmax of the static logits, (K, K) with one row for each class."""
    probabilities = torch.softmax(distilled.logits.double(), dim=1)
    classes = range(len(distilled.class_names))
    rows = [probabilities[distilled.labels == c].mean(0) for c in classes]
    return np.asarray(torch.nan_to_num(torch.stack(rows)).numpy())


def _confusion(results: Mapping[str, Any]) -> Matrix:
    """Return the students' predictions as fractions of the test images of each class."""
    counts = np.asarray(results["confusion"]["student"], dtype=np.float64)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


@dataclass(frozen=True)
class HeatMap:
    """A square table of fractions, as cells of a table or, for many classes, as a picture."""

    names: list[str]
    cells: list[list[float]] | None
    picture: str | None
    summary: str


def _heat_map(matrix: Matrix, order: Sequence[int], names: Sequence[str], verb: str) -> HeatMap:
    matrix = matrix[np.ix_(order, order)]
    sorted_names = [names[c] for c in order]
    off = matrix - np.diag(np.diag(matrix))
    row, column = np.unravel_index(int(off.argmax()), off.shape)
    summary = (
        f"Mean of the diagonal: {100 * np.diag(matrix).mean():.0f} %. Largest confusion: for "
        f"{sorted_names[row]} it {verb} {sorted_names[column]} ({100 * off[row, column]:.0f} %)."
    )
    if len(names) <= 20:
        return HeatMap(sorted_names, matrix.tolist(), None, summary)
    # square root: most cells of a large table are small
    shade = (255 * (1 - np.sqrt(matrix.clip(0, 1)))).round().astype(np.uint8)
    return HeatMap(sorted_names, None, _data_uri(Image.fromarray(shade)), summary)


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
