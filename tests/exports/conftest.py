"""A short run on digits, and a set of real colour patches with awkward class names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_images

from ltdd import pipeline
from ltdd.engine.run_folder import save_distilled
from ltdd.config import (
    DistillConfig,
    EvaluationConfig,
    ExpertsConfig,
    RecoveryConfig,
    RelabelingConfig,
)

TINY = DistillConfig(
    data="digits",
    imbalance_factor=50.0,
    ipc=2,
    horizontal_flip=False,
    experts=ExpertsConfig(
        observer="convnet3_bn", epochs=1, batch_size=64, learning_rate=0.05, schedule="one_cycle"
    ),
    recovery=RecoveryConfig(iterations=2),
    relabeling=RelabelingConfig(packing="topk", packing_top=4),
    evaluation=EvaluationConfig(epochs=2, batch_size=10, seeds=1, baselines=("random_real",)),
)
AWKWARD = ("zebra | horse/pony", "_ant_ <b>", "CON", "\N{LATIN SMALL LETTER E WITH ACUTE}t\N{BUG}")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, as it is left behind."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    pipeline.distill(TINY, out, quiet=True)
    return out


@pytest.fixture(scope="session")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the set alone."""
    out = tmp_path_factory.mktemp("published")
    for name in ("data.safetensors", "fkd.safetensors", "manifest.json", "results.json"):
        shutil.copy(run / name, out)
    return out


@pytest.fixture(scope="session")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patches of a photograph for each of four classes, in mixed order, never evaluated."""
    out = tmp_path_factory.mktemp("colour")
    photo = torch.tensor(load_sample_images().images[0]).permute(2, 0, 1)
    labels = torch.tensor([3, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3])
    patches = [photo[:, 30 * i : 30 * i + 12, 40 * i : 40 * i + 10] for i in range(len(labels))]
    config = DistillConfig(data="imagefolder:/home/someone/animals", ipc=3)
    generator = torch.Generator().manual_seed(0)
    save_distilled(
        out,
        torch.stack(patches),
        labels,
        torch.randn(len(labels), 4, generator=generator),
        class_names=AWKWARD,
        counts=[9, 5, 3, 1],
        split_sha256="0" * 64,
        normalization=([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]),
        config=config.to_dict(),
        student_recipe=TINY.to_dict()["evaluation"] | {"labels": "static", "horizontal_flip": True},
    )
    return out
