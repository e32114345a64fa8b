"""Named settings for a purpose; every value says where it comes from.

A preset is a nested dict that overrides the defaults of ``config.py``; a config file and the
command line override it in turn. "Paper" is arXiv:2511.18858; where it is silent, its published
code base's settings for the data set are used ("code"), or ours, found by measurement ("measured").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltdd.config import DistillConfig
from ltdd.errors import UserError
from ltdd.recipes.rldd import paper


def _demo(data: str, image_size: int | None, ipc: int) -> dict[str, Any]:
    # For scikit-learn's 8x8 digits on two cores in well under 90 s; all values measured.
    return {
        "horizontal_flip": False,  # a mirrored digit is another sign
        "ipc": 10,
        "experts": {
            "observer": "convnet3_bn",
            "epochs": 60,
            "batch_size": 32,
            "learning_rate": 0.05,
            "nesterov": True,
            "weight_decay": 1e-3,
            "schedule": "one_cycle",
            "resampling_power": 0.5,  # the last classes have two images
        },
        "initialization": {"crop_min_scale": 0.6},  # smaller crops of 8 pixels show no digit
        "recovery": {"iterations": 200, "alignment_weight": 0.05, "crop_min_scale": 0.6},
        "evaluation": {
            "epochs": 180,
            "learning_rate": 4e-3,
            "schedule": "cosine",
            "crop_min_scale": 0.7,
            "full_epochs": 30,
        },
    }


def _cpu(data: str, image_size: int | None, ipc: int) -> dict[str, Any]:
    # CIFAR-size images on two cores: experts within an hour, the rest within half an hour for ten
    # classes; values without a word of origin are measured.
    return {
        "precision": "auto",
        "experts": {
            # A ResNet-9 of 78 % teaches ConvNets worse than one of their own kind of 72 %.
            "observer": "convnet3_bn",
            "epochs": 50,  # 100 give a teacher 2 points better and no better students
            "min_steps": 600,  # a few hundred images would see 30 to 60
            "batch_size": 128,
            "learning_rate": 0.05,
            "nesterov": True,
            "weight_decay": 1e-3,
            "schedule": "one_cycle",
            "resampling_power": 0.2,  # code
            "debias_power": 0.8,  # code
        },
        "initialization": {"method": "clustered_crops", "crop_min_scale": 0.9},
        "recovery": {
            "iterations": 200,
            "alignment_weight": 0.5,
            "max_batch": 100,  # code: batch 100
        },
        "evaluation": {
            "epochs": min(max(25_000 // ipc, 320), 2_000 if ipc < 5 else 1_600),
            "optimizer": "muon",  # 1 to 5 points more than AdamW
            "learning_rate": 2e-3,
            "crop_min_scale": 0.08 if ipc < 5 else 0.25,
            "randaugment": True,
            "full_epochs": 15,
        },
    }


def _paper(data: str, image_size: int | None, ipc: int) -> dict[str, Any]:
    return paper(data, image_size)


PRESETS: Mapping[str, Any] = {"demo": _demo, "cpu": _cpu, "paper": _paper}
"""Name -> function of data source, image size and images per class that returns overrides."""


def preset(
    name: str, data: str, image_size: int | None = None, ipc: int = DistillConfig.ipc
) -> dict[str, Any]:
    """Return the overrides of a preset.

    Args:
        name: of `PRESETS`.
        data: the source, as in ``--data``; `paper` has a recipe for each published data set.
        image_size: as in ``--image-size``, where it is given; it helps `paper` to choose.
        ipc: as in ``--ipc``; with `cpu`, students of more images have fewer epochs.

    Raises:
        UserError: the preset is unknown.
    """
    if name not in PRESETS:
        raise UserError(f"--preset: expected one of {', '.join(PRESETS)}; got {name!r}")
    overrides: dict[str, Any] = PRESETS[name](data, image_size, ipc)
    return overrides
