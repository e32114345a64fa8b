"""DM, IDM and CSDM: images that networks see as they see real ones.

Sources: "DM" is arXiv:2110.04181, "IDM" 2307.09742, each with its authors' code, and "CSDM"
2603.01698, of which we know the distance, and that heads give more to amplitudes and tails to
phases, but no settings: all without another word are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ltdd.config import DSA_OPERATIONS
from ltdd.recipes.columns import DSA_STUDENT, HARD_LABELS, class_label_settings
from ltdd.recipes.gradient_matching import SMALL_OPERATIONS, matching_network
from ltdd.recipes.recipe import Recipe
from ltdd.recipes.rldd import published_name

Settings = dict[str, Any]

_SMALL_STUDENT: Settings = {"epochs": 300, "dsa_operations": SMALL_OPERATIONS}

_DM: Settings = {
    "method": "distribution",
    "distance": "mean",  # DM, Eq. 5
    "image_momentum": 0.5,
    "pool": 1,  # DM: a fresh network for every step
    "pool_start": 1,
    "pool_period": 1,
    "trained_networks": 0,
    "ce_weight": 0.0,
}


def _published_dm(data: str, image_size: int | None, ipc: int) -> Settings:
    tiny = published_name(data, image_size)[0] == "tiny-imagenet"
    recovery = {
        "network": matching_network(data, image_size),
        "image_learning_rate": 1.0,  # DM
        "iterations": 10_000 if tiny else 20_000,  # DM
        "real_batch": 256,  # DM
        "augmentation": DSA_OPERATIONS,  # DM
    }
    return {**class_label_settings(data, image_size, ipc), "recovery": recovery}


DM = Recipe(
    name="dm",
    title="feature means of real images in untrained networks",
    paper="arXiv:2110.04181",
    method={
        "initialization": {"method": "random_real"},  # DM
        "recovery": _DM,
        "relabeling": HARD_LABELS,
        "evaluation": {**DSA_STUDENT, "batch_size": 256},  # DM: as DSA
    },
    published=_published_dm,
    budgets={
        "demo": {
            "recovery": _DM
            | {
                "network": "convnet2_w32",
                "image_learning_rate": 1.0,  # DM
                "iterations": 300,
                "real_batch": 32,
                "augmentation": SMALL_OPERATIONS,
            },
            "evaluation": _SMALL_STUDENT,
        },
        "cpu": {
            "recovery": _DM
            | {
                "image_learning_rate": 1.0,
                "iterations": 500,
                "real_batch": 128,
                "augmentation": DSA_OPERATIONS,
            },
            "evaluation": {"epochs": 1000},
        },
    },
)

_IDM: Settings = {
    "method": "distribution",
    "distance": "mean",
    "image_momentum": 0.5,
    "pool_start": 3,  # IDM
    "trained_networks": 2,  # IDM
    "network_learning_rate": 0.01,  # IDM, and the two below
    "network_momentum": 0.9,
    "network_weight_decay": 5e-4,
    "network_data": "long_tailed",  # as it lies; IDM knows balanced data only
}

_IDM_WEIGHTS: Mapping[str, Callable[[int], float]] = {
    "cifar10": lambda ipc: 0.5 if ipc < 50 else 0.1,
    "cifar100": lambda ipc: 0.5 if ipc < 10 else 0.1,
    "tiny-imagenet": lambda ipc: 0.5 if ipc < 50 else 0.8,
}
"""Data set -> weight of the cross-entropy by images per class (IDM)."""


def _published_idm(data: str, image_size: int | None, ipc: int) -> Settings:
    name, _ = published_name(data, image_size)
    weight = _IDM_WEIGHTS.get(name, _IDM_WEIGHTS["tiny-imagenet"])
    longer = (name == "cifar100" and ipc == 10) or (name == "tiny-imagenet" and ipc >= 50)
    settings = class_label_settings(data, image_size, ipc)
    return {
        **settings,
        "initialization": {"tiles": 2},  # IDM
        "recovery": {
            "network": matching_network(data, image_size),
            "image_learning_rate": 0.2,  # IDM, and all below
            "iterations": 20_000,
            "pool": 100,
            "pool_period": 5 if ipc == 1 else 30,
            "network_steps": 50 if longer else 10,
            "network_batch": 256,
            "real_batch": 5000 if ipc == 1 else 256,
            "ce_weight": weight(ipc),
            "formation": 2,
            "augmentation": DSA_OPERATIONS,
        },
        "evaluation": settings["evaluation"] | {"decode": 2},  # IDM
    }


_BLENDED: Settings = {"method": "tiled", "resampling": "bilinear"}  # IDM

IDM = Recipe(
    name="idm",
    title="feature means of real images in a pool of networks in training",
    paper="arXiv:2307.09742",
    method={
        "initialization": _BLENDED,
        "recovery": _IDM,
        "relabeling": HARD_LABELS,
        "evaluation": {**DSA_STUDENT, "batch_size": 256},  # IDM: as DSA
    },
    published=_published_idm,
    budgets={
        "demo": {
            "initialization": _BLENDED | {"tiles": 1},  # of 2 x 2 in 8 pixels nothing is left
            "recovery": _IDM
            | {
                "network": "convnet2_w32",
                # of 0.002, 0.01 and 0.05, benchmarks/choose_budgets.py: an image has 64 values
                "image_learning_rate": 0.002,
                "iterations": 300,
                "pool": 5,
                "pool_period": 60,
                "network_steps": 3,
                "network_batch": 64,
                "real_batch": 32,
                "augmentation": SMALL_OPERATIONS,
            },
            "evaluation": _SMALL_STUDENT,
        },
        "cpu": {
            "initialization": _BLENDED | {"tiles": 2},
            "recovery": _IDM
            | {
                "image_learning_rate": 0.2,  # IDM
                "iterations": 300,
                "pool": 10,
                "pool_period": 15,
                "network_steps": 5,
                "network_batch": 128,
                "real_batch": 128,
                "formation": 2,
                "augmentation": DSA_OPERATIONS,
            },
            "evaluation": {"decode": 2, "epochs": 500},
        },
    },
)

_CSDM: Settings = {
    "method": "distribution",
    "distance": "characteristic",  # CSDM
    "image_momentum": 0.5,
    "amplitude_head": 0.7,  # CSDM: more than the tail's
    "amplitude_tail": 0.3,
    "pool_start": 1,  # the others follow one by one, so that a stopped run goes on among them
    "trained_networks": 0,  # so that the real side is computed once for every network
    "network_learning_rate": 0.01,
    "network_momentum": 0.9,
    "network_weight_decay": 5e-4,
    "network_data": "balanced",
}


def _published_csdm(data: str, image_size: int | None, ipc: int) -> Settings:
    recovery = {
        "network": matching_network(data, image_size),
        "iterations": 20_000,
        "image_learning_rate": 100.0,
        "pool": 20,
        "pool_period": 20,
        "entry_steps": 1000,
        "network_batch": 128,
        "real_batch": 5000,
        "frequencies": 4096,
        "ce_weight": 1e-4,
    }
    return {**class_label_settings(data, image_size, ipc), "recovery": recovery}


CSDM = Recipe(
    name="csdm",
    title="characteristic functions of features, amplitudes for heads and phases for tails",
    paper="arXiv:2603.01698",
    method={
        "initialization": {"method": "random_real"},
        "recovery": _CSDM,
        "relabeling": HARD_LABELS,
        "evaluation": {**DSA_STUDENT, "batch_size": 256},
    },
    published=_published_csdm,
    budgets={
        "demo": {
            "recovery": _CSDM
            | {
                "network": "convnet2_w32",
                "iterations": 300,
                "image_learning_rate": 100.0,  # 10 and 300 are as good; choose_budgets.py
                "pool": 10,
                "pool_period": 20,
                "entry_steps": 100,
                "network_batch": 64,
                "real_batch": 500,
                "frequencies": 512,
                "ce_weight": 1e-4,
            },
            "evaluation": _SMALL_STUDENT,
        },
        "cpu": {
            "recovery": _CSDM
            | {
                "iterations": 1000,
                "image_learning_rate": 100.0,
                "pool": 10,
                "pool_period": 25,  # 40 networks: their entry is four fifths of the hour
                "entry_steps": 200,
                "network_batch": 128,
                "real_batch": 1000,
                "frequencies": 1024,
                "ce_weight": 1e-4,
            },
            "evaluation": {"epochs": 1000},
        },
    },
)
