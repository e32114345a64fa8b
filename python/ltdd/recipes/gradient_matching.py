"""DC, DSA, IDC and DREAM: images that teach networks what real ones do.

Sources: "DC" is arXiv:2006.05929, "DSA" 2102.08259, "IDC" 2205.14959, "DREAM" 2302.14416, each with
its authors' code. None of them was made for long-tailed data; their rows in the tables of the field
are those of arXiv:2408.14506.

Deviation: noise is cut to the range of pixels; weight decay of students spares vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltdd.config import DSA_OPERATIONS
from ltdd.recipes.columns import DSA_STUDENT, HARD_LABELS, class_label_settings
from ltdd.recipes.recipe import Recipe
from ltdd.recipes.rldd import published_name

Settings = dict[str, Any]

SMALL_OPERATIONS = ["color", "crop", "cutout"]
"""For 8 pixels, of which interpolation leaves nothing of a stroke."""

_LOOPS: Mapping[int, tuple[int, int]] = {1: (1, 1), 10: (10, 50), 20: (20, 25), 50: (50, 10)}
"""Images per class -> matching steps with a network, and its epochs between them (DC)."""

_BATCH = {"batch_size": 256}  # DC

_DC: Settings = {
    "method": "gradient",
    "distance": "rows_cosine",  # DC, Eq. 9
    "parameters": "weights",
    "image_momentum": 0.5,
    "network_data": "synthetic",  # DC, algorithm 1
}


def matching_network(data: str, image_size: int | None) -> str:
    """Return the field's ConvNet for the images of a data source."""
    name, _ = published_name(data, image_size)
    return "convnet3" if name.startswith("cifar") else "convnet4"


def _published(data: str, image_size: int | None, ipc: int) -> Settings:
    """Return the settings of DC and DSA: for other images per class those of the next fewer."""
    inner, epochs = _LOOPS[max(known for known in _LOOPS if known <= ipc)]
    recovery = {
        "network": matching_network(data, image_size),
        "image_learning_rate": 0.1,  # DC, and all below
        "outer": 1000,
        "inner": inner,
        "network_epochs": epochs,
        "real_batch": 256,
    }
    return {**class_label_settings(data, image_size, ipc), "recovery": recovery}


def _published_dc(data: str, image_size: int | None, ipc: int) -> Settings:
    settings = _published(data, image_size, ipc)
    return {**settings, "evaluation": settings["evaluation"] | {"epochs": 300}}  # DC


_SHORT_DC: Settings = {
    "network": "convnet2_w32",  # ConvNet-3 would normalise maps of 2 x 2 pixels, and learns nothing
    "image_learning_rate": 1.0,  # of 0.1, 0.3 and 1; benchmarks/choose_budgets.py
    "outer": 60,
    "inner": 3,
    "network_epochs": 5,
    "real_batch": 32,
}
_CPU_DC: Settings = {
    "image_learning_rate": 0.1,
    "outer": 50,
    "inner": 10,
    "network_epochs": 10,
    "real_batch": 64,
}

DC = Recipe(
    name="dc",
    title="gradients of real images, matched from noise",
    paper="arXiv:2006.05929",
    method={
        "initialization": {"method": "noise"},  # DC
        "recovery": _DC,
        "relabeling": HARD_LABELS,
        "evaluation": {**DSA_STUDENT, **_BATCH, "dsa_operations": []},  # DC: images as they are
    },
    published=_published_dc,
    budgets={
        "demo": {"recovery": _DC | _SHORT_DC, "evaluation": {"epochs": 300}},
        "cpu": {"recovery": _DC | _CPU_DC, "evaluation": {"epochs": 300}},
    },
)

_DSA: Settings = _DC | {"augmentation_mode": "single"}
_SIAMESE: Settings = {"augmentation": DSA_OPERATIONS, "network_augmentation": DSA_OPERATIONS}  # DSA
_SMALL_SIAMESE: Settings = {
    "augmentation": SMALL_OPERATIONS,
    "network_augmentation": SMALL_OPERATIONS,
}


def _published_dsa(data: str, image_size: int | None, ipc: int) -> Settings:
    settings = _published(data, image_size, ipc)
    return {**settings, "recovery": settings["recovery"] | _SIAMESE}


DSA = Recipe(
    name="dsa",
    title="gradients of real images, matched under siamese augmentation",
    paper="arXiv:2102.08259",
    method={
        "initialization": {"method": "random_real"},  # DSA
        "recovery": _DSA,
        "relabeling": HARD_LABELS,
        "evaluation": {**DSA_STUDENT, **_BATCH},
    },
    published=_published_dsa,
    budgets={
        "demo": {
            "recovery": _DSA | _SMALL_SIAMESE | _SHORT_DC,
            "evaluation": {"epochs": 300, "dsa_operations": SMALL_OPERATIONS},
        },
        "cpu": {"recovery": _DSA | _SIAMESE | _CPU_DC, "evaluation": {"epochs": 1000}},
    },
)

_IDC: Settings = {
    "method": "gradient",
    "distance": "squared",  # IDC
    "parameters": "convolutions",  # IDC
    "scaled_rate": True,  # IDC
    "image_momentum": 0.5,
    "pixels": "unit",
    "clamp": True,
    "augmentation_mode": "idc",
    "network_learning_rate": 0.01,  # IDC, and the three below
    "network_momentum": 0.9,
    "network_weight_decay": 5e-4,
    "network_batch": 128,
    "network_epochs": 1,
    "network_cutmix": 0.5,
    "network_data": "long_tailed",  # as it lies; IDC knows balanced data only
}
_DREAM: Settings = _IDC | {"representatives": "clusters", "interval": 10}  # DREAM

_IDC_STUDENT: Settings = {
    **DSA_STUDENT,
    "batch_size": 64,  # IDC, and all below
    "schedule": "idc",
    "augmentation": "idc",
    "cutmix": True,
    "cutmix_probability": 0.5,
}
_IDC_OPERATIONS: Settings = {"dsa_operations": ["flip", "color", "crop", "scale", "rotate"]}
_FORMED: Settings = {  # IDC, for matching and for the networks
    "formation": 2,
    "augmentation": ["color", "crop", "cutout"],
    "network_augmentation": ["color", "crop"],
}


def _published_idc(data: str, image_size: int | None, ipc: int) -> Settings:
    tiny = published_name(data, image_size)[0] == "tiny-imagenet"
    recovery: Settings = _FORMED | {
        "network": matching_network(data, image_size),
        "image_learning_rate": 1e-6 if tiny and ipc >= 50 else 5e-3,
        "outer": 2000,
        "inner": 100,
        "real_batch": 64 if tiny else 128,
        "synthetic_batch": 128,
        "network_images": 1000 if tiny else 2000,
    }
    settings = class_label_settings(data, image_size, ipc)
    return {
        **settings,
        "initialization": {"tiles": 2},
        "recovery": recovery,
        "evaluation": settings["evaluation"] | _IDC_OPERATIONS | {"decode": 2},
    }


def _published_dream(data: str, image_size: int | None, ipc: int) -> Settings:
    settings = _published_idc(data, image_size, ipc)
    network = settings["recovery"]["network"]
    return {
        **settings,
        "initialization": {"tiles": 2, "network": network},
        "recovery": settings["recovery"] | {"outer": 250},  # DREAM: an eighth of IDC's
    }


def _idc_budgets(outer_demo: int, outer_cpu: int, recovery: Settings, start: Settings) -> Settings:
    small: Settings = {
        "network": "convnet2_w32",  # as for DC
        "image_learning_rate": 0.05,  # as good as 0.01 and 0.2; benchmarks/choose_budgets.py
        "outer": outer_demo,
        "inner": 5,
        "real_batch": 16,
        "network_images": 64,
        "network_batch": 32,
        "augmentation": SMALL_OPERATIONS,
        "network_augmentation": ["color", "crop"],
    }
    larger: Settings = _FORMED | {
        "image_learning_rate": 5e-3,  # IDC
        "outer": outer_cpu,
        "inner": 20,
        "real_batch": 64,
        "synthetic_batch": 64,
        "network_images": 500,
    }
    return {
        # Of two by two images in 8 pixels nothing would be left: IDC-I.
        "demo": {
            "initialization": start | {"tiles": 1},
            "recovery": recovery | small,
            "evaluation": {"epochs": 200, "dsa_operations": ["color", "crop"]},
        },
        "cpu": {
            "initialization": start | {"tiles": 2},
            "recovery": recovery | larger,
            "evaluation": _IDC_OPERATIONS | {"decode": 2, "epochs": 400},
        },
    }


_TILED: Settings = {"method": "tiled", "resampling": "nearest"}  # IDC
_CLUSTERED: Settings = _TILED | {"choice": "clusters"}  # DREAM

IDC = Recipe(
    name="idc",
    title="several training images in one, matched in networks that learn real ones",
    paper="arXiv:2205.14959",
    method={
        "initialization": _TILED,
        "recovery": _IDC,
        "relabeling": HARD_LABELS,
        "evaluation": _IDC_STUDENT,
    },
    published=_published_idc,
    budgets=_idc_budgets(40, 20, _IDC, _TILED),
)

DREAM = Recipe(
    name="dream",
    title="as idc, matched to representatives of clusters",
    paper="arXiv:2302.14416",
    method={
        "initialization": _CLUSTERED,
        "recovery": _DREAM,
        "relabeling": HARD_LABELS,
        "evaluation": _IDC_STUDENT,
    },
    published=_published_dream,
    budgets=_idc_budgets(20, 10, _DREAM, _CLUSTERED),
)
