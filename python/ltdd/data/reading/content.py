"""Examine decoded images: normalization, duplicates, and a hash of every pixel.

Everything here reads images piece by piece, so that they may be mapped from files that are larger
than memory.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltdd.data.duplicates import Duplicates, find_duplicates
from ltdd.data.reading.decoder import UInt8Array
from ltdd.data.reading.image_source import BLOCK_BYTES, Parts

_FLAT = 3  # of 255: the largest difference inside a channel of an image that shows nothing


@dataclass(frozen=True)
class Examined:
    """Facts about the images of a run.

    Attributes:
        mean, std: of the training images per channel, in units of [0, 1].
        duplicates: images that occur twice.
        content_sha256: as `content_sha256` gives it.
        levels: different values of the pixels of the training images.
        flat: training images whose pixels are all nearly equal.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    duplicates: Duplicates
    content_sha256: str
    levels: int
    flat: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Examined:
        """Rebuild from the dict of `dataclasses.asdict`, or from its JSON.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        found = values["duplicates"]
        return cls(
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
            duplicates=Duplicates(**found | {"examples": tuple(found["examples"])}),
            content_sha256=str(values["content_sha256"]),
            levels=int(values["levels"]),
            flat=int(values["flat"]),
        )


def examine(cut: Parts, train_images: UInt8Array, test_images: UInt8Array) -> Examined:
    """Look at all images of a run.

    Args:
        cut: gives labels and names of the images.
        train_images, test_images: uint8 (N, C, S, S).
    """
    train, test = as_tensor(train_images), as_tensor(test_images)
    counts = histograms(train)
    mean, std = channel_statistics(counts)
    duplicates = find_duplicates(
        train_images, cut.train.labels, test_images, cut.train.images.name, cut.test.images.name
    )
    train_labels, test_labels = (torch.from_numpy(p.labels) for p in (cut.train, cut.test))
    sha256 = content_sha256(train, train_labels, test, test_labels)
    levels = int((counts.sum(0) > 0).sum())
    return Examined(mean, std, duplicates, sha256, levels, flat_images(train))


def as_tensor(array: UInt8Array) -> Tensor:
    """Return a tensor over the memory of an array, which may be a read-only map of a file."""
    with warnings.catch_warnings():
        # Nobody writes to real images, and a map that could be written to would be dangerous.
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        return torch.from_numpy(array)


def content_sha256(*parts: Tensor) -> str:
    """Return the SHA-256 of tensors with their types and shapes; maps are read piece by piece."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr((part.dtype, tuple(part.shape))).encode())
        for piece in part.split(_rows(part)):
            digest.update(piece.contiguous().numpy().data)
    return digest.hexdigest()


def histograms(images: Tensor) -> Tensor:
    """Count the values of every channel, int64 (C, 256)."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for piece in images.split(_rows(images)):
        for histogram, channel in zip(counts, piece.unbind(1), strict=True):
            histogram += torch.bincount(channel.reshape(-1), minlength=256)
    return counts


def channel_statistics(counts: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel in [0, 1] units, from `histograms`.

    They are exact, and need no float copy of the data set.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for weights in counts.double():
        weights /= weights.sum()
        mean = (weights * values).sum()
        variance = (weights * (values - mean) ** 2).sum()
        means.append(float(mean))
        # A constant channel would be divided by zero; it carries nothing, so leave its scale.
        deviations.append(float(variance.sqrt()) or 1.0)
    return tuple(means), tuple(deviations)


def flat_images(images: Tensor) -> int:
    """Count the images of which every channel is nearly constant."""
    count = 0
    for piece in images.split(_rows(images)):
        low, high = piece.flatten(2).aminmax(dim=2)
        count += int(((high - low) <= _FLAT).all(dim=1).sum())
    return count


def _rows(images: Tensor) -> int:
    # bincount makes an int64 copy of what it counts.
    return max(1, BLOCK_BYTES // (8 * max(1, images[0].numel())))
