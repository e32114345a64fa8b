"""``digits``: scikit-learn's 1,797 grey 8x8 digits, which come with its wheel."""

from __future__ import annotations

import numpy as np

from ltdd.data.reading.arrays import Arrays
from ltdd.data.reading.image_source import Labelled, Parts
from ltdd.data.splitting.held_out import held_out_positions

_TEST_PER_CLASS = 50


def digits() -> Parts:
    """Return the digits; 50 images of every class, drawn with a fixed seed, are the test part."""
    from sklearn.datasets import load_digits

    source = load_digits()
    # Intensities are 0..16; this is the nearest 8-bit value.
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = source.target.astype(np.int64)
    train, test = (
        Labelled(Arrays(images, "digit", positions), labels[positions])
        for positions in held_out_positions(labels, _TEST_PER_CLASS)
    )
    return Parts(train, test, tuple(str(name) for name in source.target_names))
