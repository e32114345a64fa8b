"""Tensors, arrays and lists that somebody's program gives, checked and brought to one form."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ltdd.data.reading.arrays import channels_first
from ltdd.data.reading.decoder import UInt8Array
from ltdd.data.reading.image_source import IntArray
from ltdd.errors import UserError, first_line, shown

MOST_CLASSES = 2**31
"""Labels beyond are identifiers of something else."""


def given_images(name: str, images: Any) -> UInt8Array:
    """Return images of one's own, in any layout that `shape_of` knows, as uint8 (N, C, H, W).

    What is uint8 is not copied.

    Raises:
        UserError: they are no images, or of another type or range.
    """
    array = as_array(name, images)
    try:
        return channels_first(name, as_uint8(array) if array.size else array)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"expected {name} as uint8 or floating point in [0, 1], got {error}"
        ) from error


def given_labels(name: str, labels: Any) -> IntArray:
    """Return labels of one's own as int64 (N,).

    Raises:
        UserError: they are no whole numbers (N,), 0 or more.
    """
    array = as_array(name, labels)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array) or array.min() < 0:
        got = f"{array.dtype} {array.shape}"
        if array.ndim == 1 and array.dtype.kind in "iuf" and array.size:
            got += f" from {array.min()}"
        advice = "; of one row an image take argmax(1)" if array.ndim == 2 else ""
        raise UserError(f"expected {name} as whole numbers (N,), 0 or more, got {got}{advice}")
    if array.max() >= MOST_CLASSES:
        raise UserError(f"expected {name} below {MOST_CLASSES}, got {array.max()}")
    return array.astype(np.int64)


def as_array(name: str, value: Any) -> npt.NDArray[Any]:
    """Return a tensor, an array or nested lists as an array, without a copy where that is possible.

    Raises:
        UserError: it is something else, or its rows are of different lengths.
    """
    wanted = f"expected {name} as a tensor or an array"
    if isinstance(value, torch.Tensor):
        kind = value.dtype
        if value.layout != torch.strided or value.device.type == "meta" or value.is_quantized:
            raise UserError(f"{wanted} with plain values, got {value.layout} on {value.device}")
        if kind.is_complex:
            raise UserError(f"{wanted} of real numbers, got {kind}")
        # NumPy has no bfloat16 and nothing narrower.
        known = not kind.is_floating_point or kind in (torch.float16, torch.float32, torch.float64)
        plain = (value if known else value.float()).detach().cpu().resolve_neg()
        array: npt.NDArray[Any] = plain.numpy()
        return array
    if np.ma.isMaskedArray(value):
        raise UserError(f"{wanted} without a mask, got {shown(value)}")
    if not isinstance(value, list | tuple) and not hasattr(value, "__array__"):
        raise UserError(f"{wanted}, got {shown(value)}; a data set goes to from_datasets")
    if isinstance(value, list | tuple):
        value = [as_array(name, v) if isinstance(v, torch.Tensor) else v for v in value]
    try:
        array = np.asanyarray(value)
    except Exception as error:  # rows of different lengths, or somebody's object
        raise UserError(f"{wanted}, got {shown(value)}: {first_line(error)}") from error
    if array.dtype.kind == "O":
        raise UserError(f"{wanted} of numbers, got {shown(value)} of objects")
    return array


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


def check_scale(name: str, images: torch.Tensor) -> None:
    """Refuse uint8 images (N, C, H, W) that are black: 0 and 1 that should have been 0 and 255.

    Raises:
        UserError: no pixel is brighter than 1 of 255.
    """
    few = images[:: max(1, len(images) // 100)]  # enough to look at, unless all are black
    if int(few.max()) <= 1 and int(images.max()) <= 1:
        raise UserError(
            f"expected {name} from 0 to 255, or floating point to 1, got nothing brighter than 1 "
            "of 255; give 0 and 1 as floating point"
        )
