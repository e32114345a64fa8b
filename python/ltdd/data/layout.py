"""Layouts of image arrays: with or without an axis of channels, first or last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltdd.data.decoding import UInt8Array
from ltdd.errors import UserError

_CHANNELS = (1, 3)


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
