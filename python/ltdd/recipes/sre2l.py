"""SRe2L, squeeze, recover and relabel (arXiv:2306.13092): images from noise for one network.

Sources: "code" is the authors' code for CIFAR-100, of which the settings for CIFAR-10 are a port
with one image of each of its 10 classes a batch; "tiny" and "imagenet" are theirs for these data;
"torchvision" is its reference training, which their experts for these have.

Its running statistics are those of the head, and its experts know nothing of the tail: both reach
the labels. Nothing breaks on classes of any size.

The code for CIFAR never puts the teacher into evaluation mode, so that a label depends on the batch
that its image is in (``relabeling.teacher_mode batch``). It asks the teacher online; asked for the
very same batches before, it says the same.

Deviation: AdamW's weight decay leaves vectors alone, as everywhere in this package.
"""

from __future__ import annotations

from typing import Any

from ltdd.recipes.rded import CROSS_ENTROPY_EXPERTS
from ltdd.recipes.recipe import Recipe
from ltdd.recipes.rldd import small_images, small_images_choice

_EXPERT = {
    "observer": "resnet18",  # code
    "epochs": 200,  # code
    "batch_size": 128,  # code
    "learning_rate": 0.1,  # code
    "momentum": 0.9,  # code
    "weight_decay": 5e-4,  # code
    "schedule": "cosine",  # code
    "crop_padding": 4,  # code
}
_RECOVERY = {
    "iterations": 1000,  # code
    "learning_rate": 0.25,  # code
    "alignment_weight": 0.01,  # code
    "max_batch": 100,  # code: 100 classes
}
_STUDENT = {
    "student": "resnet18",  # code
    "epochs": 400,  # code
    "batch_size": 128,  # code
    "learning_rate": 1e-3,  # code
}
_TINY: dict[str, Any] = {
    "image_size": 64,
    "experts": {  # torchvision
        "epochs": 90,
        "batch_size": 256,
        "weight_decay": 1e-4,
        "crop_min_scale": 0.08,
    },
    "recovery": {
        "iterations": 4000,
        "learning_rate": 0.1,
        "alignment_weight": 1.0,
        "crop_min_scale": 0.08,
        "mirror": True,
        "jitter": 2,  # at 32 pixels; 4 at 64
    },  # tiny
    "relabeling": {"teacher_mode": "eval", "labels": "online"},  # imagenet
    "evaluation": {
        "temperature": 20.0,
        "augmentation": "crops",
        "crop_min_scale": 0.08,
        "cutmix": True,
        "mixup": 0.0,
        "epochs": 300,
        "batch_size": 1024,
    },  # tiny, imagenet
}


def _published(data: str, image_size: int | None, ipc: int) -> dict[str, Any]:
    name = small_images(data, image_size)
    own = _TINY if name == "tiny-imagenet" else {}
    stages = {"experts": _EXPERT, "recovery": _RECOVERY, "evaluation": _STUDENT}
    return (
        {"precision": "auto"}
        | own
        | {stage: values | own.get(stage, {}) for stage, values in stages.items()}
    )


SRE2L = Recipe(
    name="sre2l",
    title="images from noise, aligned with one network's running statistics",
    paper="arXiv:2306.13092",
    method={
        "experts": CROSS_ENTROPY_EXPERTS,
        "statistics": {"global_target": "running"},
        "initialization": {"method": "noise"},
        "recovery": {
            "first_layer_weight": 10.0,  # code
            "class_alignment_weight": 0.0,
            "order": "one_per_class",  # code
            "crop_min_scale": 1.0,  # code: nothing but a roll
            "mirror": False,  # code
            "jitter": 4,  # code
        },
        "relabeling": {"teacher_mode": "batch"},  # code
        "evaluation": {
            "loss": "kl",  # code, as all below
            "temperature": 30.0,
            "hard_weight": 0.0,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "schedule": "cosine",
            "augmentation": "padded",
            "mixup": 0.8,
            "cutmix": False,
            "randaugment": False,
            "ema_decay": 0.0,
        },
    },
    published=_published,
    budgets={
        "demo": {"recovery": {"learning_rate": 0.25, "alignment_weight": 0.01}},  # code
        "cpu": {
            "recovery": {
                "iterations": 1000,
                "learning_rate": 0.25,
                "alignment_weight": 0.01,
                "max_batch": 100,
            },  # code
            "evaluation": {
                "student": "convnet3_bn",  # the kind of its teacher
                "epochs": 400,
                "batch_size": 128,
                "learning_rate": 1e-3,
            },  # code
        },
    },
    choice=small_images_choice,
)
