"""One NumPy archive of plain arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from ltdd.engine.storage.files import write_bytes
from ltdd.results.distilled_set import DistilledSet

FILES = """\
`data.npz`: `images` uint8 (M, C, H, W), `labels` int64 (M,), `logits` float32 (M, K),
`class_names` (K,), `mean` and `std` (C,) for images in 0..1. Nothing in it is pickled."""
LOAD = """\
import numpy as np
import torch

data = np.load("data.npz")
images, labels, logits, mean, std = (
    torch.from_numpy(data[name]) for name in ("images", "labels", "logits", "mean", "std")
)
class_names = data["class_names"].tolist()"""


def write(distilled: DistilledSet, folder: Path) -> None:
    """Write the archive; equal sets give equal bytes."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        images=distilled.images.numpy(),
        labels=distilled.labels.numpy(),
        logits=distilled.logits.numpy(),
        class_names=np.array(distilled.class_names, dtype=np.str_),
        mean=np.array(distilled.normalization.mean, dtype=np.float32),
        std=np.array(distilled.normalization.std, dtype=np.float32),
    )
    write_bytes(folder / "data.npz", buffer.getvalue())
