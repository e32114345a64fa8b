"""Train a network of your own on a distilled set, with the training that the set brings along.

python examples/own_network.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

import ltdd

CONFIG = ltdd.DistillConfig.from_dict(
    {
        "ipc": 1,
        "horizontal_flip": False,  # a mirrored digit is another sign
        "experts": {
            "observer": "convnet3_bn", "epochs": 20, "batch_size": 32, "learning_rate": 0.05,
            "schedule": "one_cycle", "nesterov": True, "weight_decay": 1e-3,
            "resampling_power": 0.5,  # the last class has two images
        },
        "initialization": {"crop_min_scale": 0.6},
        "recovery": {"iterations": 100, "alignment_weight": 0.05, "crop_min_scale": 0.6},
        "relabeling": {"labels": "fkd"},  # the teacher's labels of every view, stored in the set
        "evaluation": {
            "epochs": 600, "learning_rate": 4e-3, "schedule": "cosine", "crop_min_scale": 0.7,
            "seeds": 1, "baselines": [],
        },
    }
)  # fmt: skip


def network() -> nn.Module:
    """Return anything that maps images (N, 1, 8, 8) to logits (N, 10)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


with tempfile.TemporaryDirectory() as scratch:
    data = ltdd.data.load_data("digits", imbalance_factor=50.0, quiet=True)
    ltdd.distill(CONFIG, Path(scratch), data=data, options=ltdd.RunOptions(quiet=True))
    for labels in ("fkd", "static", "hard"):
        torch.manual_seed(0)
        model, report = ltdd.train_student(
            scratch,
            network(),
            labels=labels,
            test=(data.test_images, data.test_labels),
            quiet=True,
        )
        assert report is not None
        print(
            f"labels {labels}: {100 * report['accuracy']:.1f} % right, "
            f"head {100 * report['head']:.1f}, tail {100 * report['tail']:.1f}"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters} parameters, {len(ltdd.load(scratch))} training images")
