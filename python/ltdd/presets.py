"""Named settings for a purpose; every value says where it comes from.

A preset is a nested dict that overrides the defaults of ``config.py``; a config file and the
command line override it in turn. "Paper" is arXiv:2511.18858; where it is silent, its published
code base's settings for the data set are used ("code"), or ours, found by measurement ("measured").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltdd.errors import UserError


def _demo(data: str) -> dict[str, Any]:
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


def _cpu(data: str) -> dict[str, Any]:
    # CIFAR-size images on two cores within an hour; values without a word of origin are measured.
    return {
        "precision": "auto",
        "experts": {
            "observer": "convnet3_bn",
            "epochs": 30,
            "batch_size": 128,
            "learning_rate": 0.05,
            "nesterov": True,
            "weight_decay": 1e-3,
            "schedule": "one_cycle",
            "resampling_power": 0.2,  # code
            "debias_power": 0.8,  # code
        },
        "recovery": {
            "iterations": 200,
            "alignment_weight": 0.05,
            "max_batch": 100,  # code: batch 100
        },
        "evaluation": {
            "epochs": 600,
            "crop_min_scale": 0.25,
            "full_epochs": 15,
        },
    }


def _paper(data: str) -> dict[str, Any]:
    # Observer ResNet-32 w64 with BN, teacher ConvNet-3 with instance norm, GLMC-trained (code).
    many_classes = data.startswith("cifar100")
    return {
        "precision": "auto",
        "experts": {
            "observer": "resnet32",
            "teacher": "convnet3",
            "epochs": 200,  # code
            "batch_size": 64,  # code
            "learning_rate": 0.01,  # code
            "weight_decay": 5e-3,  # code
            "schedule": "cosine",  # code
            "resampling_power": 0.2,  # code
            "debias_power": 0.8,  # code
        },
        "recovery": {
            "iterations": 2000 if many_classes else 75,  # code
            "learning_rate": 0.05,  # code
            "alignment_weight": 0.01,  # code
            "crop_min_scale": 0.5 if many_classes else 0.08,  # code
        },
        "evaluation": {
            "seeds": 5,  # paper
            "epochs": 1000,  # code
            "batch_size": 100 if many_classes else 25,  # code
            "crop_min_scale": 0.5 if many_classes else 0.08,  # code
            "randaugment": True,  # code
            "logit_std_norm": not many_classes,  # code
        },
    }


PRESETS: Mapping[str, Any] = {"demo": _demo, "cpu": _cpu, "paper": _paper}
"""Name -> function of the data source that returns overrides."""


def preset(name: str, data: str) -> dict[str, Any]:
    """Return the overrides of a preset for a data source.

    Raises:
        UserError: the preset is unknown.
    """
    if name not in PRESETS:
        raise UserError(f"--preset: expected one of {', '.join(PRESETS)}; got {name!r}")
    overrides: dict[str, Any] = PRESETS[name](data)
    return overrides
