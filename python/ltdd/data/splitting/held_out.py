"""A test part for sources that have none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltdd.data.reading.image_source import IntArray, Labelled
from ltdd.errors import UserError

_SHARE = 5
_SEED = 0


def hold_out(
    images: Labelled, class_names: Sequence[str], where: str, instead: str
) -> tuple[Labelled, Labelled, str]:
    """Split a balanced test part off: a fifth of the smallest class, at least one of every class.

    A class of one image keeps it for training.

    Args:
        images: all images.
        class_names: names in class order.
        where: the place of the images, for messages.
        instead: what the user may give so that nothing is held out.

    Returns:
        The rest, the test part, and a note that says what was done.

    Raises:
        UserError: no class has two images.
    """
    counts = np.bincount(images.labels, minlength=len(class_names))
    several = counts[counts > 1]
    if not len(several):
        raise UserError(
            f"expected at least 2 images of a class to hold one out for testing, got "
            f"{counts.max(initial=0)} in {where}; or give {instead}"
        )
    per_class = max(1, int(several.min()) // _SHARE)
    train, test = held_out_positions(images.labels, per_class)
    note = f"{where} has no test part: {per_class} of every class held out for it"
    if (counts == 1).any():
        note += f", none of those with one image; or give {instead}"
    return images.take(train), images.take(test), note


def held_out_positions(labels: IntArray, per_class: int) -> tuple[IntArray, IntArray]:
    """Split positions into a rest and a balanced held-out part, both in order."""
    held_out = np.zeros(len(labels), dtype=bool)
    generator = np.random.default_rng(_SEED)
    for class_id in range(int(labels.max()) + 1):
        positions = np.flatnonzero(labels == class_id)
        if len(positions) == 1:
            continue
        held_out[generator.permutation(positions)[:per_class]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
