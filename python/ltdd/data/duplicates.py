"""Exact duplicates: test images that are trained on, and equal images of different classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ltdd.data.reading.decoder import UInt8Array
from ltdd.data.reading.image_source import IntArray

EXAMPLES = 5
"""Pairs of each kind that are kept by name."""

Name = Callable[[int], str]


@dataclass(frozen=True)
class Duplicates:
    """Images with the same pixels, after they were brought to the size of the run.

    Attributes:
        leaked: test images that are also training images.
        contradictory: training images that are also images of another class.
        examples: the first few of each, in words.
    """

    leaked: int = 0
    contradictory: int = 0
    examples: tuple[str, ...] = ()


def find_duplicates(
    train_images: UInt8Array,
    train_labels: IntArray,
    test_images: UInt8Array,
    train_name: Name,
    test_name: Name,
) -> Duplicates:
    """Find images with equal pixels; reads every image once and keeps 8 bytes of each.

    Args:
        train_images, test_images: uint8 (N, C, S, S), in memory or mapped.
        train_labels: int64 (N,).
        train_name, test_name: position -> which image this is, in the user's terms.
    """
    train, test = _keys(train_images), _keys(test_images)
    order = np.argsort(train, kind="stable")
    ranked = train[order]
    places = np.minimum(np.searchsorted(ranked, test), len(ranked) - 1)
    leaks = [
        (int(n), int(order[places[n]]))
        for n in np.flatnonzero(ranked[places] == test)
        if np.array_equal(test_images[n], train_images[order[places[n]]])
    ]
    contradictions = {
        member: other
        for group in _groups(ranked, order)
        for member, other in _contradictions(group, train_images, train_labels)
    }
    pairs = sorted(contradictions.items())
    examples = [
        *(f"{test_name(n)} is also {train_name(other)}" for n, other in leaks[:EXAMPLES]),
        *(f"{train_name(n)} is also {train_name(other)}" for n, other in pairs[:EXAMPLES]),
    ]
    return Duplicates(len(leaks), len(pairs), tuple(examples))


def _keys(images: UInt8Array) -> npt.NDArray[np.uint64]:
    """Return 64 bits of a hash of every image; equal keys are confirmed by looking."""
    keys = np.empty(len(images), dtype=np.uint64)
    for n, image in enumerate(images):
        pixels = np.ascontiguousarray(image)
        keys[n] = int.from_bytes(hashlib.blake2b(pixels.data, digest_size=8).digest(), "little")
    return keys


def _groups(ranked: npt.NDArray[np.uint64], order: IntArray) -> Iterator[IntArray]:
    """Yield the positions, ascending, of images that share a key."""
    edges = np.flatnonzero(np.diff(ranked)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(ranked)]])
    for group in np.flatnonzero(ends - starts > 1):
        yield order[starts[group] : ends[group]]


def _contradictions(
    group: IntArray, images: UInt8Array, labels: IntArray
) -> Iterator[tuple[int, int]]:
    """Yield every image of a group with the first equal one of another class."""
    first = group[0]
    others = group[labels[group] != labels[first]]
    for member in group if len(others) else ():
        other = others[0] if labels[member] == labels[first] else first
        if np.array_equal(images[member], images[other]):
            yield int(member), int(other)
