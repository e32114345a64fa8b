"""Images that somebody's object gives one by one: any map-style data set of (image, class)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ltdd.data.reading.decoder import UInt8Array
from ltdd.data.reading.image_source import Images, IntArray, Labelled, Pictures
from ltdd.errors import UserError


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
        UserError: there are no items, or one is no (image, class) pair.
    """
    try:
        count = len(dataset)
    except TypeError as error:
        raise UserError(
            f"expected {part} data with a length, got {type(dataset).__name__}"
        ) from error
    if not count:
        raise UserError(f"expected images in the {part} data, got none")
    if labels is None:
        labels = np.array([_label(dataset, part, n) for n in range(count)], dtype=np.int64)
    return Labelled(Items(dataset, part, np.arange(count), known), labels)


def _label(dataset: Dataset, part: str, position: int) -> int:
    item = dataset[position]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise UserError(
            f"expected (image, class) pairs in the {part} data, got {type(item).__name__} at "
            f"{position}"
        )
    label = np.asarray(item[1])
    if label.size != 1 or label.dtype.kind not in "iu" or int(label.reshape(())) < 0:
        raise UserError(
            f"expected a class 0 or more, a whole number, in the {part} data at {position}, got "
            f"{item[1]!r}"
        )
    return int(label.reshape(()))


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
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        array = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise ValueError(f"a {type(image).__name__}, not an image, array or tensor")
    array = as_uint8(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        raise ValueError(f"an array of shape {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def as_uint8(array: npt.NDArray[Any]) -> UInt8Array:
    """Return pixels as uint8; floating-point ones in [0, 1] are rounded to 0..255.

    Raises:
        ValueError: they have another type or range.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ValueError(f"pixels of type {array.dtype}, not uint8 or floating point")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise ValueError(f"floating-point pixels from {low:g} to {high:g}, not in [0, 1]")
    pixels: UInt8Array = np.rint(array * 255).astype(np.uint8)
    return pixels
