"""Pictures of the report: images of every class, and tables of classes against classes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ltdd.artifacts import DistilledSet, read_tensors

Matrix = npt.NDArray[np.float64]

# The page stays below 5 MB: pictures take at most this many raw bytes before they are compressed.
_PICTURE_BYTES = 2_500_000
_SHOWN = 10  # images of a class
_SIDE = 64  # larger images are shrunk to this side
_GROUPS = ("head", "medium", "tail")


@dataclass(frozen=True)
class Card:
    """The pictures of one class."""

    name: str
    count: int
    group: str
    rows: list[tuple[str, str, str, float]]  # caption, alternative text, data URI, width in %


def class_cards(
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


def mean_soft_labels(distilled: DistilledSet) -> Matrix:
    """Return the mean softmax of the static logits, (K, K) with one row for each class."""
    probabilities = torch.softmax(distilled.logits.double(), dim=1)
    classes = range(len(distilled.class_names))
    rows = [probabilities[distilled.labels == c].mean(0) for c in classes]
    return np.asarray(torch.nan_to_num(torch.stack(rows)).numpy())


def confusion(results: Mapping[str, Any]) -> Matrix:
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


def heat_map(matrix: Matrix, order: Sequence[int], names: Sequence[str], verb: str) -> HeatMap:
    """Arrange fractions of classes against classes for the page.

    Args:
        matrix: (K, K), one row for each class, in label order.
        order: label of each row and column of the result.
        names: class names in label order.
        verb: what a row does with a column, for the summary.
    """
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
