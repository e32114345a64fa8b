"""RDED, images of the most telling crops (arXiv:2312.03526): no optimisation at all.

Sources: "code" is the authors' code, as far as it is known; "torchvision" its reference training,
which RDED's experts have. RDED takes the best crop of each of 300 images of a class and cannot go
on where a class has fewer; here a class offers what it has, and gives its second-best crops in
further rounds.

Deviations: experts end on a cosine, torchvision's in three steps. A student is shown a batch once;
the code runs it through a second time, so that batch-norm statistics move twice a step.
"""

from __future__ import annotations

from typing import Any

from ltdd.recipes.recipe import Recipe
from ltdd.recipes.rldd import small_images, small_images_choice

CROSS_ENTROPY_EXPERTS = {"loss": "ce", "teacher": "same"}


def _published(data: str, image_size: int | None, ipc: int) -> dict[str, Any]:
    name = small_images(data, image_size)
    network = "convnet4_bn" if name == "tiny-imagenet" else "convnet3_bn"
    batch = 10 if ipc < 10 else 50 if ipc < 50 else 100  # code, 10 classes
    rate = 1e-3  # code
    if name == "cifar100":
        batch, rate = 25, 2e-3  # code, ConvNet-3
    if name == "tiny-imagenet":
        batch = 100  # code
    size = {"image_size": 64} if name == "tiny-imagenet" else {}
    return {
        "precision": "auto",
        "experts": {
            "observer": network,  # code; the tables have ResNet-18 too
            "epochs": 90,  # torchvision
            "batch_size": 256,  # torchvision
            "learning_rate": 0.1,  # torchvision
            "momentum": 0.9,  # torchvision
            "weight_decay": 1e-4,  # torchvision
        },
        "initialization": {"crop_min_scale": 0.08},  # code
        # Stored, the labels of 200 classes would take gigabytes; the code asks online everywhere.
        "relabeling": {"labels": "online" if name == "tiny-imagenet" else "fkd"},
        "evaluation": {
            "student": network,  # code
            "seeds": 3,  # code
            "epochs": 300,  # code
            "batch_size": batch,
            "learning_rate": rate,
        },
    } | size


RDED = Recipe(
    name="rded",
    title="the crops of real images that a network is surest of",
    paper="arXiv:2312.03526",
    method={
        "experts": CROSS_ENTROPY_EXPERTS,
        "initialization": {
            "method": "scored_crops",
            "crops_per_image": 5,  # code
            "images_per_class": 300,  # code
            "tiles": 1,  # code, up to 64 pixels; 2 at 224
        },
        "recovery": {"method": "none"},
        "evaluation": {
            "loss": "kl",  # code, as all below
            "temperature": 20.0,
            "hard_weight": 0.0,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "schedule": "smoothed_cosine",  # "half" a cosine
            "augmentation": "crops",
            "crop_min_scale": 1.0,  # 1 / tiles
            "cutmix": True,
            "randaugment": False,
            "ema_decay": 0.0,
        },
    },
    published=_published,
    budgets={
        "demo": {"evaluation": {"student": "convnet3_bn"}},
        "cpu": {
            "initialization": {"method": "scored_crops", "crop_min_scale": 0.08},  # code
            "evaluation": {
                "student": "convnet3_bn",  # code
                "epochs": 300,  # code
                "batch_size": 50,  # code, for 10 images a class
                "learning_rate": 1e-3,  # code
            },
        },
    },
    choice=small_images_choice,
)
