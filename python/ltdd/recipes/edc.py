"""EDC, and two methods beside it: G-VBSM before it, and ADSA on top of it.

EDC (arXiv:2404.13733) aligns real images with batch norms and convolutions of eight networks in
turns, against the statistics of the whole set and of the batch's classes. G-VBSM (arXiv:2311.17950)
starts from noise, knows no classes, drops convolutions by lot and evens out eigenvalues. ADSA
(arXiv:2511.17914) corrects the labels of any method for the class sizes: EDC's in the recipe, which
does best with it, and any other's by ``--relabeling.calibration adsa``.

Sources: "code" is the authors' code, as far as it is known, "paper" the article. The settings are
those of balanced sets; what was changed for published figures on long-tailed ones is not known.

Deviations: statistics are of the real images as they are, by their real number (the code divides by
that of the balanced set); the means of patches are means (in the code's files they are swapped with
the variances); the estimate starts with the first batch (in the code, from zero). Every image draws
its own crop, in the code a batch. Experts end on a cosine, there at a constant rate. The start
takes real images without replacement as long as there are any. Hard labels are mixed like the
images.
"""

from __future__ import annotations

from typing import Any

from ltdd.config import override
from ltdd.recipes.rded import CROSS_ENTROPY_EXPERTS
from ltdd.recipes.recipe import Recipe
from ltdd.recipes.rldd import small_images, small_images_choice

_FEW = ("convnet3_bn", "convnet2_bn", "convnet3_w32_bn")
_CIFAR = ("resnet18", "mobilenet_v2", "wrn16_2", "shufflenet_v2_05",
          "convnet3", "convnet1", "convnet2", "convnet3_w32")  # code  # fmt: skip
_TINY = ("resnet18", "convnet4", "mobilenet_v2", "wrn16_2", "shufflenet_v2_05")  # code
_GENERALIZED = ("resnet18", "convnet3", "mobilenet_v2", "wrn16_2", "shufflenet_v2_05")  # code

_BOTH_KINDS = {"layers": "batch_norm_and_conv", "global_target": "running", "class_target": "edc"}
_ADAMW = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01}  # paper
_SGD = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.875, "weight_decay": 5e-4}  # code


# What depends on the number of pixels is in G-VBSM's budgets: digits want other values.
_SCRIPT = {
    "alignment_weight": 0.01,  # code
    "eigen_weight": 1.0,  # code: the script; its default is 1e-5
    "jitter": 32,  # code: up to the whole width
}


def _networks(names: tuple[str, ...]) -> dict[str, Any]:
    return {"observer": names[0], "extra_observers": list(names[1:])}


def _experts(name: str, networks: tuple[str, ...]) -> dict[str, Any]:
    return _networks(networks) | {
        "epochs": 5 if name == "cifar10" else 50,  # code; its files are of epochs 1 and 41
        "batch_size": 64,  # code
        "learning_rate": 0.05,  # code
        "momentum": 0.9,  # code
        "weight_decay": 0.0,  # code
    }


def _edc(data: str, image_size: int | None, ipc: int) -> dict[str, Any]:
    name = small_images(data, image_size)
    tiny, ten = name == "tiny-imagenet", name == "cifar10"
    student: dict[str, Any] = {"student": "resnet18", "epochs": 1000, "randaugment": True}  # code
    match name:
        case "cifar10":
            student |= {"batch_size": 25 if ipc > 1 else 10, "schedule": "step"} | _ADAMW  # code
        case "cifar100":
            student |= {"batch_size": 50, "schedule": "cos2"} | _SGD  # code
        case _:
            student |= {"batch_size": 100, "schedule": "smoothed_cosine"} | _SGD  # code
            student["epochs"] = 300 if ipc > 1 else 1000  # code
    crops = {"crop_min_scale": 0.08 if ten else 0.5}  # code
    size = {"image_size": 64} if tiny else {}
    return {
        "precision": "auto",
        "experts": _experts(name, _TINY if tiny else _CIFAR),
        "recovery": {
            "iterations": 75 if ten else 2000,  # code
            # Code; of CIFAR-10, batches of 100 would hold two classes each at 50 images a class.
            "max_batch": 1000 if ten else 100,
        }
        | crops,
        "relabeling": {"labels": "online" if tiny else "fkd"},
        "evaluation": student | crops,
    } | size


def _g_vbsm(data: str, image_size: int | None, ipc: int) -> dict[str, Any]:
    name = small_images(data, image_size)
    tiny = name == "tiny-imagenet"
    if name == "cifar100":  # code: ConvNet, width 128
        student = {"student": "convnet3", "batch_size": 64, "optimizer": "sgd",
                   "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}  # fmt: skip
    else:  # code, for CIFAR-10
        student = {"student": "resnet18", "batch_size": 100, "optimizer": "adamw",
                   "learning_rate": 1e-3, "weight_decay": 0.0}  # fmt: skip
    size = {"image_size": 64} if tiny else {}
    return {
        "precision": "auto",
        "experts": _experts(name, _TINY if tiny else _GENERALIZED),
        "recovery": {"iterations": 4000, "max_batch": 100} | _SCRIPT,  # code
        "relabeling": {"labels": "online" if tiny else "fkd"},
        "evaluation": student | {"epochs": 1000, "crop_min_scale": 0.08},  # code
    } | size


EDC = Recipe(
    name="edc",
    title="real images aligned with batch norms and convolutions of several networks "
    "(eight as published, two or three small ones in demo and cpu)",
    paper="arXiv:2404.13733",
    method={
        "experts": CROSS_ENTROPY_EXPERTS,
        "statistics": _BOTH_KINDS,
        "initialization": {"method": "random_real"},  # code
        "recovery": {
            "learning_rate": 0.05,  # code
            "alignment_weight": 0.005,  # code: 0.01, half of it for the classes
            "class_alignment_weight": 1.0,
            "class_part": "pooled",  # code
            "first_layer_weight": 10.0,  # code
            "momentum": 0.8,  # code
            "order": "class_major",  # code
        },
        "evaluation": {
            "loss": "mse",  # code
            "hard_weight": 0.025,  # code
            "augmentation": "crops",  # code
            "cutmix": True,  # code
            "ema_decay": 0.99,  # code
        },
    },
    published=_edc,
    budgets={
        "demo": {
            "experts": _networks(_FEW[2:0:-1]),
            "recovery": {"iterations": 60},
        },
        "cpu": {
            "experts": _networks(_FEW),
            "recovery": {"iterations": 75, "max_batch": 1000, "crop_min_scale": 0.08},  # code
            "evaluation": _ADAMW | {"schedule": "step", "crop_min_scale": 0.08, "epochs": 1000},
        },
    },
    choice=small_images_choice,
)

ADSA = Recipe(
    name="adsa",
    title="EDC with the class sizes taken out of its labels "
    "(with any other method: --relabeling.calibration adsa)",
    paper="arXiv:2511.17914",
    method=override(EDC.method, {"relabeling": {"calibration": "adsa"}}),
    published=EDC.published,
    budgets=EDC.budgets,
    choice=EDC.choice,
)

G_VBSM = Recipe(
    name="g_vbsm",
    title="images from noise aligned with batch norms and convolutions of several networks "
    "(five as published, two or three small ones in demo and cpu)",
    paper="arXiv:2311.17950",
    method={
        "experts": CROSS_ENTROPY_EXPERTS,
        "statistics": _BOTH_KINDS,
        "initialization": {"method": "noise"},  # code
        "recovery": {
            "learning_rate": 0.05,  # code
            "class_alignment_weight": 0.0,
            "first_layer_weight": 10.0,  # code
            "momentum": 0.8,  # code
            "order": "class_major",  # code
            "hook_drop": 0.4,  # code
            "crop_min_scale": 1.0,  # code: moved, mirrored and rolled
            "crop_padding": 4,  # code
        },
        "evaluation": {
            "loss": "mse",  # code
            "hard_weight": 0.15,  # code
            "schedule": "cosine",  # code
            "augmentation": "crops",  # code
            "cutmix": True,  # code
            "randaugment": False,
            "ema_decay": 0.0,
        },
    },
    published=_g_vbsm,
    budgets={
        "demo": {
            "experts": _networks(_FEW[2:0:-1]),
            # Eigenvalues of 64 pixels lie closer together than those of 3,072: the script's weight
            # of 1 leaves noise of which students learn nothing (10 %); 1e-5 is the code's default.
            # Rolled all the way around, a digit is cut in two: 19 %, rolled by an eighth 40 %, and
            # with the preset's alignment_weight 58 %.
            "recovery": {"iterations": 200, "max_batch": 100, "eigen_weight": 1e-5, "jitter": 4},
        },
        "cpu": {
            "experts": _networks(_FEW),
            "recovery": {"iterations": 4000, "max_batch": 100} | _SCRIPT,  # code
            "evaluation": _SGD | {"momentum": 0.9, "batch_size": 64, "crop_min_scale": 0.08},
        },
    },
    choice=small_images_choice,
)
