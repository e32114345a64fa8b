"""Images in arrays: their layouts, and arrays in memory as a source of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ltdd.data.reading.decoder import Form, Header, UInt8Array, padded_sides
from ltdd.data.reading.image_source import BLOCK_BYTES, IntArray
from ltdd.errors import UserError

_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Arrays:
    """Images that are in memory already.

    Attributes:
        array: uint8 (N, C, H, W).
        part: ``train`` or ``test``, for `name`.
        positions: which of them, and in which order; None for all.
    """

    array: UInt8Array
    part: str
    positions: IntArray | None = None

    def __len__(self) -> int:
        return len(self.array if self.positions is None else self.positions)

    def take(self, positions: IntArray) -> Arrays:
        """As `Images.take`."""
        return replace(self, positions=self._indices(positions))

    def headers(self) -> Counter[Header]:
        """As `Images.headers`."""
        _, channels, height, width = self.array.shape
        return Counter({Header(width, height, channels == 1): len(self)})

    def value_range(self) -> None:
        """As `Images.value_range`: all have 8 bits."""

    def ready(self, form: Form) -> UInt8Array | None:
        """Return the array itself if it is what decoding would copy."""
        as_wanted = self.array.shape[1:] == (form.channels, form.size, form.size)
        return self.array if as_wanted and self.positions is None else None

    def blocks(self, form: Form) -> Iterator[tuple[IntArray, UInt8Array]]:
        """As `Images.blocks`, in order."""
        at_once = images_at_once(self.array.shape[1:], form)
        for start in range(0, len(self), at_once):
            positions = np.arange(start, min(start + at_once, len(self)))
            yield positions, bring_to(form, self.array[self._indices(positions)])

    def identity(self) -> str | None:
        """Nothing names arrays in memory."""
        return None

    def name(self, position: int) -> str:
        """As `Images.name`."""
        return f"{self.part} image {self._indices(np.array([position]))[0]}"

    def _indices(self, positions: IntArray) -> IntArray:
        return positions if self.positions is None else self.positions[positions]


def images_at_once(shape: Sequence[int], form: Form) -> int:
    """Return how many images of this shape make a block."""
    # Resizing works in float32.
    largest = 4 * max(int(np.prod(shape)), form.channels * form.size**2)
    return max(1, BLOCK_BYTES // largest)


def bring_to(form: Form, images: UInt8Array) -> UInt8Array:
    """Do to arrays what `pixels_of` does to pictures: fit, resize with antialiasing, repeat grey.

    Args:
        form: what they are brought to; its channels are C, or 3 where C is 1.
        images: uint8 (n, C, H, W).

    Returns:
        uint8 (n, channels, S, S).
    """
    size, (height, width) = form.size, images.shape[2:]
    if form.fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = _resized(images[:, :, top : top + side, left : left + side], size, size)
    elif form.fit == "squeeze":
        square = _resized(images, size, size)
    else:
        inner_width, inner_height = padded_sides(width, height, size)
        top, left = (size - inner_height) // 2, (size - inner_width) // 2
        square = np.zeros((*images.shape[:2], size, size), dtype=np.uint8)  # black
        square[:, :, top : top + inner_height, left : left + inner_width] = _resized(
            images, inner_height, inner_width
        )
    return np.ascontiguousarray(
        square.repeat(form.channels, axis=1) if square.shape[1] < form.channels else square
    )


def _resized(images: UInt8Array, height: int, width: int) -> UInt8Array:
    if images.shape[2:] == (height, width):
        return images
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(images)),
        size=(height, width),
        mode="bilinear",
        antialias=True,
    )
    array: UInt8Array = resized.numpy()
    return array


def shape_of(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width of an array of images.

    Args:
        name: of the array, for messages.
        shape: (N, H, W), (N, H, W, C) or (N, C, H, W), with C of 1 or 3.

    Raises:
        UserError: it is something else, or there is no image.
    """
    if len(shape) not in (3, 4) or not all(shape):
        raise UserError(
            f"expected {name} of shape (N, H, W), (N, H, W, C) or (N, C, H, W), got {tuple(shape)}"
        )
    if len(shape) == 3:
        return 1, shape[1], shape[2]
    if _last(shape):
        return shape[3], shape[1], shape[2]
    if shape[1] not in _CHANNELS:
        raise UserError(f"expected {name} with 1 or 3 channels, got shape {tuple(shape)}")
    return shape[1], shape[2], shape[3]


def channels_first(name: str, images: UInt8Array) -> UInt8Array:
    """Return a view (N, C, H, W) of images of any layout that `shape_of` knows."""
    shape_of(name, images.shape)
    if images.ndim == 3:
        return images[:, None]
    return np.moveaxis(images, 3, 1) if _last(images.shape) else images


def _last(shape: Sequence[int]) -> bool:
    """Return whether the channels of a 4-axis shape come last; images have no side of 1 or 3."""
    return shape[3] in _CHANNELS and (shape[1] not in _CHANNELS or shape[2] not in _CHANNELS)
