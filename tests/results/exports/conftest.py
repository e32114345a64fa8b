"""A short run on digits, and a set of real colour patches with awkward class names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.saved_set import save_set
from helpers.tiny_run import FINISHED
from sklearn.datasets import load_sample_images

from ltdd.config import (
    DistillConfig,
)
from ltdd.data.image_spec import ImageSet, Normalization

AWKWARD = ("zebra | horse/pony", "_ant_ <b>", "CON", "\N{LATIN SMALL LETTER E WITH ACUTE}t\N{BUG}")


@pytest.fixture(scope="session")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patches of a photograph for each of four classes, in mixed order, never evaluated."""
    out = tmp_path_factory.mktemp("colour")
    photo = torch.tensor(load_sample_images().images[0]).permute(2, 0, 1)
    labels = torch.tensor([3, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3])
    patches = [photo[:, 30 * i : 30 * i + 12, 40 * i : 40 * i + 10] for i in range(len(labels))]
    config = DistillConfig(data="imagefolder:/home/someone/animals", ipc=3)
    generator = torch.Generator().manual_seed(0)
    save_set(
        out,
        ImageSet(torch.stack(patches), labels),
        torch.randn(len(labels), 4, generator=generator),
        AWKWARD,
        [9, 5, 3, 1],
        normalization=Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
        config=config.to_dict(),
        student_training=FINISHED.to_dict()["evaluation"]
        | {"labels": "static", "horizontal_flip": True},
    )
    return out
