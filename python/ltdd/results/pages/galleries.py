"""Pictures of the pages: images of every class, and tables of classes against classes."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ltdd.data.image_spec import to_uint8
from ltdd.engine.storage.stage_store import read_stage
from ltdd.results.distilled_set import DistilledSet
from ltdd.results.pages import charts
from ltdd.results.pages.charts import Chart

Matrix = npt.NDArray[np.float64]
ImagesOfClass = Callable[[int], Tensor]
"""Label -> uint8 images (N, C, H, W) of the class."""

# A page stays below 5 MB: pictures take at most this many raw bytes before they are compressed. The
# rest is for tables of a thousand classes and for the nearest pairs.
_PICTURE_BYTES = 1_900_000
# Images of a class, and the side to which larger ones are shrunk; the second if there is no room.
SCALES = ((10, 64), (5, 48))
_NUMBERED_CLASSES = 20  # larger tables are drawn without numbers
_MATRIX_SIDE = 250  # of a drawn table; more classes are averaged in blocks


@dataclass(frozen=True)
class Strip:
    """Some images of a class in a row.

    Attributes:
        kind: what they are, in a word.
        alt: text alternative.
        picture: the row.
        share: of the card's width, in percent.
    """

    kind: str
    alt: str
    picture: Image.Image
    share: float

    @property
    def uri(self) -> str:
        """The picture for an ``src`` attribute."""
        return _data_uri(self.picture)


@dataclass(frozen=True)
class Card:
    """The pictures of one class."""

    name: str
    note: str
    strips: list[Strip]


@dataclass(frozen=True)
class Gallery:
    """Pictures of as many classes as a page has room for.

    Attributes:
        cards: from the largest to the smallest class.
        shown: largest number of images in a strip.
        side: larger images are shrunk to it.
    """

    cards: list[Card]
    shown: int
    side: int


def gallery(
    kinds: Mapping[str, ImagesOfClass],
    order: Sequence[int],
    names: Sequence[str],
    notes: Sequence[str],
) -> Gallery:
    """Draw images of as many classes as a page has room for.

    Args:
        kinds: caption -> images, one strip each.
        order: labels from the largest to the smallest class.
        names: of the classes, in label order.
        notes: what else is said about each class.

    Returns:
        The pictures; with too many classes, those evenly from the largest to the smallest.
    """
    first = [images(order[0]) for images in kinds.values()]
    for shown, side in SCALES:
        values = sum(
            min(shown, len(i)) * i.shape[1] * min(side, i.shape[2]) * min(side, i.shape[3])
            for i in first
        )
        room = max(2, _PICTURE_BYTES // values)
        if room >= len(order):
            break
    chosen = list(order)
    if room < len(order):  # both ends included
        chosen = [order[round(i * (len(order) - 1) / (room - 1))] for i in range(room)]
    cards = []
    for label in chosen:
        images = {kind: of_class(label)[:shown] for kind, of_class in kinds.items()}
        # One scale for all strips of a card; few images are not blown up to the full width.
        slots = max(5, *map(len, images.values()))
        strips = [
            Strip(
                kind,
                f"{kind} images of class {names[label]}, {len(found)} in a row",
                row_of_images(found, side),
                100 * len(found) / slots,
            )
            for kind, found in images.items()
        ]
        cards.append(Card(names[label], notes[label], strips))
    return Gallery(cards, shown, side)


def run_images(out: Path, distilled: DistilledSet) -> dict[str, ImagesOfClass]:
    """Return initial, distilled and real images of a run, as far as their files are there."""
    labels, counts = distilled.labels, distilled.manifest["counts"]
    initial, real = _initial_images(out, distilled)
    kinds: dict[str, ImagesOfClass] = {}
    if initial is not None:
        kinds["start"] = lambda label: initial[labels == label]
    kinds["distilled"] = lambda label: distilled.images[labels == label]
    if real is not None:
        # a smaller class repeats its images to fill the row
        kinds["real"] = lambda label: real[label][: counts[label]]
    return kinds


def _initial_images(out: Path, distilled: DistilledSet) -> tuple[Tensor | None, Tensor | None]:
    """Return the images before recovery and real examples as uint8, if their file is there."""
    tensors = stage_tensors(out, distilled, "initialization")
    if tensors is None:
        return None, None
    return to_uint8(tensors["images"]), tensors["real_examples"]


def stage_tensors(out: Path, distilled: DistilledSet, stage: str) -> dict[str, Tensor] | None:
    """Return what a stage of the run left, if its file is there."""
    for name in (distilled.results or {}).get("files", {}):
        if name.startswith(f"{stage}-") and (out / "stages" / name).exists():
            return read_stage(out / "stages" / name).tensors
    return None


def row_of_images(images: Tensor, side: int) -> Image.Image:
    """Return uint8 images (N, C, H, W) in one row, with transparent gaps."""
    side = min(side, images.shape[-1])
    cell = side * max(1, 32 // side)  # whole steps, so that pixels stay squares
    gap = max(1, cell // 16)
    row = Image.new("RGBA", ((cell + gap) * len(images) - gap, cell))
    for position, image in enumerate(images):
        pixels = image.permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        method = Image.Resampling.LANCZOS if picture.width > cell else Image.Resampling.NEAREST
        row.paste(picture.resize((cell, cell), method), (position * (cell + gap), 0))
    return row


def grids(cards: Sequence[Card]) -> dict[str, bytes]:
    """Return PNG files of the cards' strips: kind -> one row for each class, with its name."""
    found: dict[str, bytes] = {}
    for number, kind in enumerate(strip.kind for strip in cards[0].strips):
        rows = [(card.name, card.strips[number].picture) for card in cards]
        height, left = max(p.height for _, p in rows) + 4, 96
        width = left + max(p.width for _, p in rows) + 4
        grid = Image.new("RGB", (width, height * len(rows) + 4), "white")
        draw, font = ImageDraw.Draw(grid), ImageFont.load_default(12)
        for row, (name, picture) in enumerate(rows):
            top = 4 + row * height
            draw.text((4, top + height // 2 - 8), name[:13], fill="black", font=font)
            grid.paste(picture, (left, top), picture)
        found[kind] = png(grid)
    return found


def png(picture: Image.Image) -> bytes:
    """Return a picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _data_uri(picture: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def mean_soft_labels(distilled: DistilledSet) -> Matrix:
    """Return the mean softmax of the static logits, (K, K) with one row for each class."""
    probabilities = torch.softmax(distilled.logits.double(), dim=1)
    classes = range(len(distilled.class_names))
    rows = [probabilities[distilled.labels == c].mean(0) for c in classes]
    return np.asarray(torch.nan_to_num(torch.stack(rows)).numpy())


def confusion(results: Mapping[str, Any], who: str) -> Matrix:
    """Return the predictions of a kind of network as fractions of each class's test images."""
    rows = results["confusion"][who]
    counts = np.zeros((len(rows), len(rows)))
    for label, row in enumerate(rows):
        for predicted, images in row.items():
            counts[label, int(predicted)] = images
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def heat_map(
    name: str,
    matrix: Matrix,
    order: Sequence[int],
    names: Sequence[str],
    verb: str,
    titles: tuple[str, str],
) -> Chart:
    """Draw fractions of classes against classes; its label says what is worth noticing.

    Args:
        name: stem of its file.
        matrix: (K, K), one row for each class, in label order.
        order: label of each row and column of the result.
        names: class names in label order.
        verb: what a row does with a column, for the label.
        titles: what rows and columns are.
    """
    matrix = matrix[np.ix_(order, order)]
    sorted_names = [names[c] for c in order]
    known = matrix.sum(axis=1) > 0  # not so for classes without test images
    right = np.diag(matrix)[known].mean()
    off = matrix - np.diag(np.diag(matrix))
    row, column = np.unravel_index(int(off.argmax()), off.shape)
    label = (
        f"Mean of the diagonal: {100 * right:.0f} %. Largest confusion: for "
        f"{sorted_names[row]} it {verb} {sorted_names[column]} ({100 * off[row, column]:.0f} %)."
    )
    if len(names) <= _NUMBERED_CLASSES:
        return charts.matrix(name, label, sorted_names, matrix.tolist(), "", titles)
    # square root: most cells of a large table are small
    shade = 255 * (1 - np.sqrt(_blocks(matrix, _MATRIX_SIDE).clip(0, 1)))
    picture = _data_uri(Image.fromarray(shade.round().astype(np.uint8)))
    drawn = charts.matrix(name, label, sorted_names, None, picture, titles)
    rows = [
        [
            sorted_names[i],
            f"{100 * matrix[i, i]:.1f} %",
            sorted_names[int(others.argmax())],
            f"{100 * others.max():.1f} %",
        ]
        for i, others in enumerate(off)
    ]
    columns = [titles[0], "itself", "largest other", "share"]
    return dataclasses.replace(drawn, columns=columns, rows=rows)


def _blocks(matrix: Matrix, most: int) -> Matrix:
    """Average blocks of equal size until a matrix has at most ``most`` rows."""
    size = math.ceil(len(matrix) / most)
    starts = np.arange(0, len(matrix), size)
    lengths = np.diff([*starts, len(matrix)])
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    return np.asarray(sums / np.outer(lengths, lengths))
