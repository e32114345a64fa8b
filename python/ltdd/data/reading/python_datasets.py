"""Images that somebody's object gives one by one: any map-style data set of (image, class)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ltdd.data.reading.given_arrays import MOST_CLASSES, as_array, as_uint8
from ltdd.data.reading.image_source import Images, IntArray, Labelled, Pictures
from ltdd.errors import UserError, first_line, shown

_ASKED_TWICE = 8  # items; a mirroring with p = 1/2 passes one time in 256


class Dataset(Protocol):
    """A map-style data set, such as any `torch.utils.data.Dataset` with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """Return an image (PIL, array or tensor) and its class, a whole number."""


@dataclass(frozen=True)
class Items(Pictures):
    """Images of a data set.

    Attributes:
        dataset: gives (image, class) pairs, the same each time.
        part: ``train`` or ``test``, for `name`.
        positions: which of them, in which order.
        known: names the content of the data set; None if nothing does.
    """

    dataset: Dataset
    part: str
    positions: IntArray
    known: str | None = None

    # The object may be anything: one thread only, the caller's rules of use.
    threads: ClassVar[int] = 1
    can_be_skipped: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, positions: IntArray) -> Images:
        """As `Images.take`."""
        return Items(self.dataset, self.part, self.positions[positions], self.known)

    @contextmanager
    def opened(self, position: int) -> Iterator[Image.Image]:
        """Ask for one image."""
        yield as_picture(self.dataset[int(self.positions[position])][0])

    def identity(self) -> str | None:
        """As `Images.identity`."""
        if self.known is None:
            return None
        return hashlib.sha256(
            self.known.encode() + self.positions.astype("<i8").tobytes()
        ).hexdigest()

    def name(self, position: int) -> str:
        """As `Images.name`."""
        return f"{self.part} image {self.positions[position]}"


def all_items(
    dataset: Dataset, part: str, labels: IntArray | None = None, known: str | None = None
) -> Labelled:
    """Return the images of a whole data set; without labels, every item is asked for its own.

    Raises:
        UserError: it is no map-style data set, there are no items, one is no (image, class) pair,
            or the same position gives different images.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        loaded = "; give its .dataset" if isinstance(dataset, DataLoader) else ""
        raise UserError(
            f"expected {part} data with a length and an item at every position, got "
            f"{shown(dataset)}{loaded}"
        )
    try:
        count = len(dataset)
    except Exception as error:  # anybody's code, which may raise anything
        raise UserError(
            f"expected {part} data with a length, got {first_line(error)} from {shown(dataset)}"
        ) from error
    if not count:
        raise UserError(f"expected images in the {part} data, got none")
    if labels is None:
        labels = np.array([_label(dataset, part, n) for n in range(count)], dtype=np.int64)
        _check_repeatable(dataset, part)
    return Labelled(Items(dataset, part, np.arange(count), known), labels)


def _label(dataset: Dataset, part: str, position: int) -> int:
    try:
        item = dataset[position]
    except Exception as error:  # anybody's code, which may raise anything
        raise UserError(
            f"expected an item at every position of the {part} data, got {first_line(error)} at "
            f"{position}"
        ) from error
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        length = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise UserError(
            f"expected (image, class) pairs in the {part} data, got {shown(item)}{length} at "
            f"{position}"
        )
    label = _whole_number(item[1])
    if label is None:
        swapped = isinstance(item[1], Image.Image) or getattr(item[1], "ndim", 0) > 1
        advice = "; are image and class swapped?" if swapped else ""
        raise UserError(
            f"expected a class 0 or more, a whole number, in the {part} data at {position}, got "
            f"{shown(item[1])}{advice}"
        )
    return label


def _whole_number(value: Any) -> int | None:
    """Return the class in a number, or in a tensor or array of one; None if there is none."""
    if isinstance(value, torch.Tensor):
        value = as_array("a class", value)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        return None
    return int(value) if 0 <= value < MOST_CLASSES else None


def _check_repeatable(dataset: Dataset, part: str) -> None:
    """Ask some items twice: images from a random transform would differ in every stage."""
    count = len(dataset)
    for position in sorted({n * (count - 1) // (_ASKED_TWICE - 1) for n in range(_ASKED_TWICE)}):
        try:
            first, second = (as_picture(dataset[position][0]) for _ in range(2))
        except Exception:  # decoding names every image that cannot be read
            continue
        if first.tobytes() != second.tobytes():
            raise UserError(
                f"expected the same {part} image each time, got two that differ at {position}; "
                "leave out random transforms"
            )


def as_picture(image: Any) -> Image.Image:
    """Turn what a data set gives into a picture.

    Args:
        image: a PIL image, an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W); the
            latter two uint8, or floating point in [0, 1].

    Raises:
        ValueError: it is something else.
    """
    if isinstance(image, Image.Image):
        if image.mode == "F":
            raise ValueError("floating-point pixels, whose range is unknown")
        return image
    if not isinstance(image, (torch.Tensor, np.ndarray)):
        raise ValueError(f"a {type(image).__name__}, not an image, array or tensor")
    array = as_array("an image", image)
    if isinstance(image, torch.Tensor) and image.ndim == 3:
        array = array.transpose(1, 2, 0)
    array = as_uint8(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        raise ValueError(f"an array of shape {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))
