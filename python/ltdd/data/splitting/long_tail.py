"""The long-tailed split: how many images each class keeps, which ones, and how to name the groups.

Everything here is exact and depends on nothing but its arguments, so two people who ask for the
same split get the same images and the same SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ltdd.errors import UserError

IntArray = npt.NDArray[np.int64]

SPLIT_SEED = 42
MANY_SHOT_ABOVE = 100
FEW_SHOT_UP_TO = 20


def exponential_counts(num_classes: int, imbalance_factor: float, n_max: int) -> list[int]:
    """Return the exponential profile of the long-tailed CIFAR data sets.

    n_c = int(n_max * r^(c / (C - 1))) with r = 1 / imbalance_factor and c = 0..C-1, truncated in
    double precision (arXiv:1906.07413). Single precision would change some counts.

    Args:
        num_classes: Number of classes C, 2 or more.
        imbalance_factor: n_max / n_min, 1 or more.
        n_max: Images of class 0, the head.

    Returns:
        C counts, never increasing. A count is 0 where the profile falls below one image.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> exponential_counts(10, 100, 5000)
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    if num_classes < 2:
        raise UserError(f"expected at least 2 classes, got {num_classes}")
    if not 1 <= imbalance_factor < float("inf"):
        raise UserError(f"expected an imbalance factor >= 1, got {imbalance_factor!r}")
    ratio = 1 / imbalance_factor
    return [int(n_max * ratio ** (c / (num_classes - 1))) for c in range(num_classes)]


def long_tailed_indices(
    labels: npt.NDArray[np.integer], num_classes: int, imbalance_factor: float | None
) -> IntArray:
    """Choose the images of the long-tailed training set.

    Class c keeps n_c images of the exponential profile whose n_max is the largest class, but never
    more than it has and never fewer than one: the first n_c of
    ``RandomState(42).permutation(N_c)``, with a fresh generator for every class, over the class's
    images in file order. This is the split of arXiv:2408.14506, and the published
    long-tailed distillation tables use it. Splits of one data set are nested: a larger imbalance
    factor keeps a subset.

    Args:
        labels: (N,) class of every image, 0..num_classes-1.
        num_classes: Number of classes C.
        imbalance_factor: n_max / n_min of the profile; None keeps every image.

    Returns:
        int64 positions into `labels`: in order for None, else class by class in drawn order.

    Raises:
        UserError: a class has no image, or the imbalance factor is below 1.
    """
    labels = np.asarray(labels)
    available = np.bincount(labels, minlength=num_classes)
    if len(available) > num_classes or (len(labels) and labels.min() < 0):
        raise UserError(
            f"expected labels in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}"
        )
    if available.min() == 0:
        raise UserError(
            f"expected images of every class, got none of class {int(available.argmin())}"
        )
    if imbalance_factor is None:
        return np.arange(len(labels), dtype=np.int64)
    profile = exponential_counts(num_classes, imbalance_factor, int(available.max()))
    chosen = []
    for class_id, count in enumerate(profile):
        positions = np.flatnonzero(labels == class_id)
        keep = max(1, min(count, len(positions)))
        # The legacy generator is part of the rule: its permutation is what others published with.
        order = np.random.RandomState(SPLIT_SEED).permutation(len(positions))
        chosen.append(positions[order[:keep]])
    return np.concatenate(chosen).astype(np.int64)


def split_sha256(
    indices: npt.NDArray[np.integer],
    labels: npt.NDArray[np.integer],
    class_names: Sequence[str],
) -> str:
    """Return the SHA-256 that names a split: class names in order, positions, and their classes.

    Args:
        indices: (n,) chosen positions, in order.
        labels: (N,) class of every image of the source, which `indices` point into.
        class_names: Names of the classes in index order.

    Returns:
        64 hexadecimal digits, the same on every platform.
    """
    indices = np.asarray(indices)
    digest = hashlib.sha256(json.dumps(list(class_names), ensure_ascii=True).encode())
    digest.update(indices.astype("<i8").tobytes())
    digest.update(np.asarray(labels)[indices].astype("<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class AccuracyGroups:
    """Class ids of the groups over which accuracies are averaged, each in ascending order.

    Attributes:
        head: The third of the classes with the most training images.
        medium: The classes between head and tail.
        tail: The third with the fewest; as large as the head.
        many_shot: Classes with more than 100 training images.
        medium_shot: Classes with 21 to 100.
        few_shot: Classes with 20 or fewer.
    """

    head: tuple[int, ...]
    medium: tuple[int, ...]
    tail: tuple[int, ...]
    many_shot: tuple[int, ...]
    medium_shot: tuple[int, ...]
    few_shot: tuple[int, ...]


def accuracy_groups(counts: Sequence[int]) -> AccuracyGroups:
    """Group classes by their number of training images.

    Equal counts are ordered by class index, so on the exponential profile and on balanced data the
    thirds are thirds by index: 10 classes give 3, 4 and 3. Two classes are a head and a tail.

    Args:
        counts: Training images of every class.

    Raises:
        UserError: fewer than two classes.
    """
    if len(counts) < 2:
        raise UserError(f"expected at least 2 classes, got {len(counts)}")
    by_count = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    third = max(1, round(len(counts) / 3))
    return AccuracyGroups(
        head=tuple(sorted(by_count[:third])),
        medium=tuple(sorted(by_count[third:-third])),
        tail=tuple(sorted(by_count[-third:])),
        many_shot=tuple(c for c, n in enumerate(counts) if n > MANY_SHOT_ABOVE),
        medium_shot=tuple(c for c, n in enumerate(counts) if FEW_SHOT_UP_TO < n <= MANY_SHOT_ABOVE),
        few_shot=tuple(c for c, n in enumerate(counts) if n <= FEW_SHOT_UP_TO),
    )
