"""What the recipes that match experts' trajectories share: their tables, students and budgets.

None of the methods but DAMED was published for long-tailed data; arXiv:2408.14506 ran them on such
with the values of the balanced sets, whatever the imbalance factor. Cells without published values
get those of the nearest number of images per class.

Deviation of all: nothing is whitened, where the publications whiten most cells, so that what is
published are pixels; and the gradient is exact where TESLA's was taken for want of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ltdd.config import override
from ltdd.recipes.columns import DSA_STUDENT, SHORTER, class_label_settings
from ltdd.recipes.recipe import Settings
from ltdd.recipes.rldd import published_name

Cell = dict[str, Any]
Table = Mapping[str, Mapping[int, Cell]]
"""Data set -> images per class -> settings of recovery; ``start`` is the form of initialization."""

_LIKE = {"imagenet-64": "tiny-imagenet", "imagenet-224": "tiny-imagenet"}
_NETWORKS = {"cifar10": "convnet3", "cifar100": "convnet3", "tiny-imagenet": "convnet4"}

STUDENT: dict[str, Any] = {**DSA_STUDENT, "learning_rate": None}
"""DSA's students, with the learning rate that recovery learned (arXiv:2203.11932)."""
SOFT_STUDENT: dict[str, Any] = STUDENT | {"loss": "soft_ce", "hard_weight": 0.0}
"""The same on learned labels (arXiv:2310.05773)."""
GSAM: dict[str, Any] = {"sharpness": "gsam", "sharpness_radius": 0.01}  # FTD, arXiv:2211.11004

_OPERATIONS = ["color", "crop"]  # 8 pixels leave little of a stroke that is turned or cut
DEMO: Settings = {
    # 6 experts of a width-32 network, matched from their start on; all values measured.
    "network": "convnet3_w32",
    "trajectories": 6,
    "trajectory_epochs": 24,  # half of the classes known; enough for students of class labels
    "trajectory_batch_size": 16,
    "trajectory_learning_rate": 0.3,
    "dsa_operations": _OPERATIONS,
    "iterations": 200,
    "steps": 10,
    "start_max": 2,
    "expert_epochs": 1,
    "image_learning_rate": 0.1,
    "label_learning_rate": 20.0,
    "rate_learning_rate": 1e-5,
    "student_learning_rate": 0.03,
}
TAUGHT_DEMO: Settings = {
    # For labels that experts give, which ought to know the classes: 89 % of images held out instead
    # of 49 (benchmarks/choose_budgets.py). ConvNet-3 would normalise maps of 2 x 2 pixels.
    "network": "convnet2_w32",
    "trajectory_epochs": 48,
    "trajectory_learning_rate": 0.1,
    "iterations": 60,
    "steps": 15,
    "start_max": 8,
    "label_learning_rate": 5.0,
    "student_learning_rate": 0.05,
}
CPU: Settings = {
    # 4 experts; says what two cores do in an hour or so, not what the method can.
    "trajectories": 4,
    "trajectory_epochs": 12,
    "iterations": 300,
    "steps": 10,
    "start_max": 10,
    "synthetic_batch": 50,
}


def budgets(demo: Settings, cpu: Settings) -> Mapping[str, Settings]:
    """Return the budgets of a recipe, which add to those that all have."""
    return {
        "demo": override(SHORTER["demo"], {"recovery": {"method": "trajectory", **DEMO, **demo}}),
        "cpu": override(SHORTER["cpu"], {"recovery": {"method": "trajectory", **CPU, **cpu}}),
    }


def published_by(table: Table, common: Settings) -> Callable[[str, int | None, int], Settings]:
    """Return the function that gives the published settings of a data set and an ipc.

    Args:
        table: of the cells.
        common: what all cells share of recovery.
    """

    def published(data: str, image_size: int | None, ipc: int) -> Settings:
        name, _ = published_name(data, image_size)
        cells = table[_LIKE.get(name, name)]
        cell = dict(cells[min(cells, key=lambda known: abs(math.log(ipc / known)))])
        start = {"initialization": {"method": cell.pop("start")}} if "start" in cell else {}
        network = _NETWORKS[_LIKE.get(name, name)]
        recovery = {"method": "trajectory", "network": network, **common, **cell}
        return {**class_label_settings(data, image_size, ipc), **start, "recovery": recovery}

    return published


def choice_by(rows: str) -> Callable[[str, int | None], str]:
    """Return the function that says in words whose published settings a data set gets."""

    def choice(data: str, image_size: int | None) -> str:
        name, why = published_name(data, image_size)
        return f"published settings of {_LIKE.get(name, name)}, by {why}; {rows}"

    return choice
