"""Distilled images beside the training images nearest to them, as the report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ltdd.results.distilled_set import DistilledSet
from ltdd.results.nearness import distance_text, measure_name
from ltdd.results.pages.galleries import SCALES, Strip, png, row_of_images, stage_tensors
from ltdd.stages.nearest_images import MEASURES


@dataclass(frozen=True)
class Pair:
    """A distilled image and the training image nearest to it.

    Attributes:
        measure: one of `nearest_images.MEASURES`.
        name: class of the distilled image.
        note: how near the other one is, and its class.
        strips: the two pictures.
    """

    measure: str
    name: str
    note: str
    strips: tuple[Strip, Strip]


def nearest_pairs(out: Path, distilled: DistilledSet) -> list[Pair]:
    """Return the nearest pairs of every measure, nearest first, if their file is there."""
    nearest, tensors = (
        (distilled.results or {}).get("nearest"),
        stage_tensors(out, distilled, "nearest"),
    )
    if nearest is None or tensors is None:
        return []
    return [
        _pair(distilled, measure, measure_name(nearest, measure), row, real)
        for measure in MEASURES
        for row, real in zip(nearest[measure]["pairs"], tensors[f"{measure}.real"], strict=True)
    ]


def _pair(
    distilled: DistilledSet, measure: str, unit: str, row: Mapping[str, Any], real: Tensor
) -> Pair:
    number, side = row["distilled"], SCALES[0][1]
    name = distilled.class_names[int(distilled.labels[number])]
    other = distilled.class_names[row["training_class"]]
    ours = f"distilled image {number} of class {name}"
    theirs = f"training image {row['training']} of class {other}, the nearest to it in {unit}"
    note = (
        f"{distance_text(row['distance'])} in {unit} from distilled image {number} to training "
        f"image {row['training']}, class {other}"
    )
    return Pair(
        measure,
        name,
        note,
        (
            Strip(
                "distilled", ours, row_of_images(distilled.images[number : number + 1], side), 100
            ),
            Strip("training", theirs, row_of_images(real[None], side), 100),
        ),
    )


def pair_grids(pairs: Sequence[Pair]) -> dict[str, bytes]:
    """Return PNG files of pairs: measure -> distilled images above the training images."""
    found: dict[str, bytes] = {}
    for measure in dict.fromkeys(pair.measure for pair in pairs):
        chosen = [[strip.picture for strip in p.strips] for p in pairs if p.measure == measure]
        cell = chosen[0][0].width + 4
        grid = Image.new("RGB", (cell * len(chosen) + 4, 2 * cell + 4), "white")
        for column, pictures in enumerate(chosen):
            for line, picture in enumerate(pictures):
                grid.paste(picture, (4 + column * cell, 4 + line * cell), picture)
        found[measure] = png(grid)
    return found
