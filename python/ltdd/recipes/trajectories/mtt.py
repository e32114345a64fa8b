"""MTT, the first to match trajectories (arXiv:2203.11932); FTD and TESLA, which built on it.

Sources: "MTT" is its authors' command for each cell, "FTD" arXiv:2211.11004 and "TESLA"
arXiv:2211.10586. Their students learn class labels.
"""

from __future__ import annotations

from typing import Any

from ltdd.recipes.columns import HARD_LABELS
from ltdd.recipes.recipe import Recipe
from ltdd.recipes.trajectories.family import GSAM, STUDENT, Cell, budgets, choice_by, published_by


def _cell(
    steps: int,
    epochs: int,
    before: int,
    image_rate: float,
    rate_rate: float,
    rate: float,
    batch: int | None = None,
) -> Cell:
    return {
        "steps": steps,  # MTT
        "expert_epochs": epochs,  # MTT
        "start_max": before,  # MTT; it starts before this epoch
        "image_learning_rate": image_rate,  # MTT
        "rate_learning_rate": rate_rate,  # MTT
        "student_learning_rate": rate,  # MTT
        "synthetic_batch": batch,  # MTT
    }


MTT_CELLS: dict[str, dict[int, Cell]] = {
    "cifar10": {
        1: _cell(50, 2, 2, 100, 1e-7, 0.01),
        10: _cell(30, 2, 20, 100, 1e-5, 0.001),  # its command prints 1e5, a misprint
        50: _cell(30, 2, 40, 1000, 1e-5, 0.001),
    },
    "cifar100": {
        1: _cell(20, 3, 20, 1000, 1e-5, 0.01),
        10: _cell(20, 2, 20, 1000, 1e-5, 0.01),
        50: _cell(80, 2, 40, 1000, 1e-5, 0.01, 125),
    },
    "tiny-imagenet": {
        1: _cell(10, 2, 10, 10_000, 1e-4, 0.01),
        10: _cell(20, 2, 40, 10_000, 1e-4, 0.01, 200),
        50: _cell(20, 2, 40, 10_000, 1e-4, 0.01, 300),
    },
}
FTD_CELLS: dict[str, dict[int, Cell]] = {
    "cifar10": {
        1: MTT_CELLS["cifar10"][1],
        10: MTT_CELLS["cifar10"][10],
        50: MTT_CELLS["cifar10"][50] | {"student_learning_rate": 0.01, "sharpness_weight": 1.0},
    },
    "cifar100": {
        1: MTT_CELLS["cifar100"][1] | {"steps": 40, "sharpness_weight": 1.0},
        10: MTT_CELLS["cifar100"][10] | {"start_max": 40, "sharpness_weight": 1.0},
        50: MTT_CELLS["cifar100"][50] | {"synthetic_batch": 1000, "sharpness_weight": 1.0},
    },
    "tiny-imagenet": {
        ipc: cell | {"sharpness_weight": 1.0} for ipc, cell in MTT_CELLS["tiny-imagenet"].items()
    },
}
# TESLA gives one cell of these sets; elsewhere it has what it built on.
_ONE = MTT_CELLS["cifar10"][1] | {"start_max": 5, "image_learning_rate": 1000}
TESLA_CELLS = MTT_CELLS | {"cifar10": MTT_CELLS["cifar10"] | {1: _ONE}}

_RUNS: dict[str, Any] = {
    "trajectories": 100,  # MTT
    "trajectory_epochs": 50,  # MTT
    "iterations": 5000,  # MTT
}
_METHOD: dict[str, Any] = {
    "initialization": {"method": "random_real"},  # MTT
    "relabeling": HARD_LABELS,  # MTT
    "evaluation": STUDENT | {"batch_size": 256},  # MTT
}
_ROWS = "of the nearest images per class, whatever the imbalance"
_SAID = "6 experts and 200 iterations on digits, 4 and 300 on few cores, 100 and 5,000 published"

MTT = Recipe(
    name="mtt",
    title=f"images that lead networks along experts' paths ({_SAID})",
    paper="arXiv:2203.11932",
    method=_METHOD | {"recovery": {"method": "trajectory"}},
    published=published_by(MTT_CELLS, _RUNS),
    choice=choice_by(_ROWS),
    budgets=budgets({}, {}),
)
TESLA = Recipe(
    name="tesla",
    title="MTT with a gradient that takes steps as independent of each other",
    paper="arXiv:2211.10586",
    method=_METHOD | {"recovery": {"method": "trajectory", "unroll": "tesla"}},
    published=published_by(TESLA_CELLS, _RUNS | {"iterations": 10_000}),
    choice=choice_by(_ROWS),
    budgets=budgets({}, {}),
)
FTD = Recipe(
    name="ftd",
    title="MTT along flat paths, of experts trained by GSAM",
    paper="arXiv:2211.11004",
    method=_METHOD | {"recovery": {"method": "trajectory", **GSAM}},
    published=published_by(FTD_CELLS, _RUNS | {"trajectory_epochs": 100}),
    choice=choice_by(_ROWS),
    budgets=budgets({}, {}),
)
