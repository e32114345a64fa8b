"""RLDD, rectify and label for long-tailed data (arXiv:2511.18858), with its published settings.

Sources: "paper" is the article; "code" the authors' code for the data set, as far as a copy shows
it; "GLMC" the expert training it builds on (CVPR 2023); "EDC" the recovery and student training it
builds on (NeurIPS 2024). None of them makes a value depend on the imbalance factor or on ipc, so
the settings of a data set serve every cell of its table.

Deviation: the targets are statistics that a batch can really have (``statistics.global_target
mixture``, ``class_target finite``); ``paper`` and ``full`` are Eq. 9 as printed. Recovery's batches
hold images of as many classes as possible, where the code sorts them by class. As everywhere in
this package, experts and students are those of the last epoch, not the best ones on the test set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ltdd.recipes.recipe import Recipe

Settings = dict[str, Any]

_NAMES = re.compile(
    r"(?P<tiny>tiny[-_ ]?imagenet)|(?P<imagenet_lt>imagenet[-_]lt)|(?P<imagenet>imagenet)"
    r"|(?P<cifar100>cifar[-_]?100(?!\d))|(?P<cifar10>cifar[-_]?10(?!\d))",
    re.IGNORECASE,
)
_OF_SIZE: Mapping[int, str] = {32: "cifar10", 64: "tiny-imagenet", 224: "imagenet-224"}


def published_name(data: str, image_size: int | None = None) -> tuple[str, str]:
    """Return whose published settings a data source gets, and what decided.

    The data set is known by its name at the end of the source (``cifar100``,
    ``imagefolder:PATH/tiny-imagenet-200``, ``list:PATH/ImageNet_LT_train.txt,...``). ImageNet has
    settings for 64 and for 224 pixels: ``image_size`` chooses, without it the list of ImageNet-LT
    gets 224 and any other ImageNet 64. Unknown data get the settings of the nearest image size.

    Args:
        data: as in ``--data``.
        image_size: as in ``--image-size``; None if not given.
    """
    matches = [match.lastgroup or "" for match in _NAMES.finditer(data)]
    name = matches[-1] if matches else ""
    if name in ("cifar10", "cifar100"):
        return name, "the name of the data"
    if name == "tiny":
        return "tiny-imagenet", "the name of the data"
    if name:
        small = name == "imagenet" if image_size is None else image_size <= 64
        why = "the name of the data" + ("" if image_size is None else " and the image size")
        return ("imagenet-64" if small else "imagenet-224"), why
    if image_size is None:
        return "cifar10", "default; name or image size would choose another"
    nearest = min(_OF_SIZE, key=lambda size: abs(size - image_size))
    return _OF_SIZE[nearest], "the image size"


def small_images(data: str, image_size: int | None = None) -> str:
    """Return which of cifar10, cifar100 and tiny-imagenet is nearest to a data source.

    Methods whose settings for larger images are not known are given those of tiny-imagenet there.
    """
    name, _ = published_name(data, image_size)
    return "tiny-imagenet" if name.startswith("imagenet") else name


def small_images_choice(data: str, image_size: int | None) -> str:
    """Say in words what `small_images` returns."""
    _, why = published_name(data, image_size)
    return f"published settings of {small_images(data, image_size)}, by {why}"


def _published(data: str, image_size: int | None, ipc: int) -> Settings:
    name, _ = published_name(data, image_size)
    return PUBLISHED[name]


def _choice(data: str, image_size: int | None) -> str:
    name, why = published_name(data, image_size)
    return f"published settings of {name}, by {why}"


def _experts(observer: str, teacher: str, hidden: int, **others: Any) -> Settings:
    return {
        "observer": observer,  # code; the paper says "observer" and "teacher"
        "teacher": teacher,  # code
        "loss": "rldd",  # paper, Eq. 5-7
        "schedule": "cosine",  # GLMC, code
        "momentum": 0.9,  # GLMC, code
        "resampling_power": 0.2,  # code
        "projection_dim": hidden,  # GLMC: 128 for resnet32 and ConvNets, 256 for larger ResNets
        "crop_padding": 4,  # GLMC at 32 pixels, code has 8 at 64
    } | others


# "Same recipe for observer and teacher, two separate trainings" (paper); the values are the code's
# for both CIFARs. For Tiny-ImageNet nothing else is known.
_SMALL_IMAGES: Mapping[str, Any] = {
    "epochs": 200,
    "batch_size": 64,
    "learning_rate": 0.01,
    "weight_decay": 5e-3,
    "debias_power": 0.8,
    "consistency_weight": 1.0,
}

# GLMC's values for ImageNet-LT. Its warm-up is applied an epoch late, so that the first one runs at
# the full rate; here it is not.
_IMAGENET: Mapping[str, Any] = {
    "epochs": 135,
    "batch_size": 120,
    "learning_rate": 0.1,
    "weight_decay": 2e-4,
    "warmup_epochs": 10,
    "debias_power": 1.0,
    "consistency_weight": 10.0,
}

_CROPS: Mapping[str, Any] = {
    "method": "scored_crops",  # paper
    "crops_per_image": 5,  # code
    "crop_min_scale": 0.08,  # code, RDED
}


def _recovery(iterations: int, batch: int, weight: float, min_scale: float) -> Settings:
    return {
        "iterations": iterations,  # code
        "learning_rate": 0.05,  # code, EDC
        "max_batch": batch,  # code
        "alignment_weight": weight,  # code, EDC
        "first_layer_weight": 10.0,  # code
        "classification_weight": 1.0,  # code; the paper's Eq. 2 has no such term
        "crop_min_scale": min_scale,  # code, EDC
    }


def _student(architecture: str, batch: int, min_scale: float, **others: Any) -> Settings:
    return {
        "student": architecture,  # paper
        "seeds": 5,  # paper: mean and deviation of 5 runs
        "epochs": 1000,  # code
        "batch_size": batch,  # code
        "logit_weight": 1.0,  # EDC
        "hard_weight": 0.025,  # EDC
        "crop_min_scale": min_scale,  # code, EDC
        "cutmix": True,  # code
        "randaugment": True,  # code
        "ema_decay": 0.99,  # code, EDC
    } | others


# Code; with 200 classes and more the stored labels of 1,000 epochs would take gigabytes.
_ONLINE = {"labels": "online"}

_ADAMW = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01}  # EDC
_SGD = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.875, "weight_decay": 5e-4}  # code

PUBLISHED: Mapping[str, Settings] = {
    "cifar10": {  # 32 pixels, ConvNet-3; the whole set is one batch of recovery
        "precision": "auto",
        "experts": _experts("resnet32", "convnet3", 128, **_SMALL_IMAGES),
        "initialization": _CROPS,
        "recovery": _recovery(75, 1000, 0.01, 0.08),
        "evaluation": _student(
            "convnet3",
            25,
            0.08,
            schedule="step",  # code
            logit_std_norm=True,  # code
            **_ADAMW,
        ),
    },
    "cifar100": {  # 32 pixels, ConvNet-3
        "precision": "auto",
        "experts": _experts("resnet32", "convnet3", 128, **_SMALL_IMAGES),
        "initialization": _CROPS,
        "recovery": _recovery(2000, 100, 0.01, 0.5),
        "evaluation": _student(
            "convnet3",
            100,
            0.5,
            schedule="cos2",  # code
            **_SGD,
        )
        | {"hard_weight": 0.0},  # code
    },
    "tiny-imagenet": {  # 64 pixels, ConvNet-4
        "precision": "auto",
        "image_size": 64,
        "experts": _experts("resnet18", "convnet4", 256, **_SMALL_IMAGES),
        "initialization": _CROPS,
        "recovery": _recovery(2000, 100, 0.01, 0.5),
        "relabeling": _ONLINE,
        "evaluation": _student("convnet4", 100, 0.5, schedule="smoothed_cosine", **_SGD),  # code
    },
    "imagenet-64": {  # ConvNet-4, imbalance factors 5 and 10
        "precision": "auto",
        "image_size": 64,
        "experts": _experts("resnext50", "same", 256, **_IMAGENET),
        "initialization": _CROPS,
        "recovery": _recovery(1000, 80, 0.1, 0.5),
        "relabeling": _ONLINE,
        "evaluation": _student("convnet4", 100, 0.5, schedule="cos2", **_ADAMW),  # code
    },
    "imagenet-224": {  # "ResNet-50", which is ResNeXt-50 in the code; the list of ImageNet-LT
        "precision": "auto",
        "image_size": 224,
        "experts": _experts(
            "resnext50",
            "same",
            256,
            crop_min_scale=0.08,  # GLMC
            color_jitter=0.4,  # GLMC
            **_IMAGENET,
        ),
        "initialization": _CROPS,
        "recovery": _recovery(1000, 80, 0.1, 0.5),
        "relabeling": _ONLINE,
        "evaluation": _student("resnext50", 100, 0.5, schedule="cos2", **_ADAMW),  # code
    },
}
"""Data set -> overrides of the defaults, nested like the configuration."""

RLDD = Recipe(
    name="rldd",
    title="fair batch-norm statistics and labels of debiased experts",
    paper="arXiv:2511.18858",
    published=_published,  # what makes it RLDD are the defaults of the configuration
    # The teacher of that preset imitates a network that favours large classes a little. Of 0 to 0.3
    # 0.15 gives it the best figure: 78.0 instead of 77.2, and in the tail 78.1 instead of 72.4.
    budgets={"cpu": {"relabeling": {"prior": 0.15}}},
    choice=_choice,
)
