"""DAMED, which matches backbones and balanced classifiers of experts on long-tailed data.

Sources: arXiv:2408.14506 and its authors' configuration of each cell. The published values depend
on the imbalance factor; a recipe does not know it and takes those of 100 for CIFAR-10 and those of
10 for the other sets, which hold for 20 too. The other rows of CIFAR-10 differ in the weights of
the phases (1 / 0.2 at 10; 1 / 0.5, then 0.5 / 1 at 50; 0.1 / 1 at 200) and in few windows.
"""

from __future__ import annotations

from ltdd.recipes.recipe import Recipe, Settings
from ltdd.recipes.trajectories.family import (
    GSAM,
    SOFT_STUDENT,
    TAUGHT_DEMO,
    Cell,
    budgets,
    choice_by,
    published_by,
)


def _cell(
    weights: tuple[float, float],
    steps: tuple[int, int],
    window: tuple[int, int],
    image_rate: float,
    label_rate: float,
    batch: int,
    rate_rate: float = 1e-5,
    **others: object,
) -> Cell:
    return {
        "backbone_weight": weights[0],
        "classifier_weight": weights[1],
        "steps": steps[0],
        "classifier_steps": steps[1],
        "start_min": window[0],
        "start_max": window[1],
        "image_learning_rate": image_rate,
        "label_learning_rate": label_rate,
        "synthetic_batch": batch,
        "rate_learning_rate": rate_rate,
    } | others


def _hundred(window: tuple[int, int]) -> Cell:
    return _cell((1, 0.1), (40, 20), window, 1000, 10.0, 1000, start="random_real")


def _tiny(steps: int, window: tuple[int, int], batch: int, rate_rate: float) -> Cell:
    both = (steps, steps)
    return _cell((1, 0.1), both, window, 100, 10.0, batch, rate_rate, start="random_real")


CELLS: dict[str, dict[int, Cell]] = {
    "cifar10": {
        10: _cell((0.5, 1), (80, 80), (0, 20), 100, 2.0, 500),
        20: _cell(
            (0.5, 1), (80, 80), (0, 20), 100, 2.0, 500,
            curriculum_from=10, curriculum_iterations=2000,
        ),
        50: _cell((1, 0.5), (80, 60), (0, 40), 1000, 2.0, 500),
    },
    "cifar100": {10: _hundred((30, 50)), 20: _hundred((20, 70)), 50: _hundred((20, 70))},
    "tiny-imagenet": {
        10: _tiny(25, (10, 50), 500, 1e-4),
        20: _tiny(20, (10, 50), 500, 1e-4),
        50: _tiny(10, (40, 70), 1000, 1e-5),
    },
}  # fmt: skip
_RUNS: Settings = {
    "trajectories": 100,
    "trajectory_epochs": 100,
    "classifier_epochs": 10,
    "iterations": 10_000,
    "student_learning_rate": 0.01,
}

DAMED = Recipe(
    name="damed",
    title="images and labels that match backbones and balanced classifiers of experts (6 experts "
    "and 60 iterations on digits, 4 and 300 on few cores, 100 and 10,000 published)",
    paper="arXiv:2408.14506",
    method={
        "initialization": {"method": "correct_real"},
        "recovery": {
            "method": "trajectory",
            **GSAM,
            "sharpness_weight": 0.3,
            "trajectory_weight_decay": 5e-3,
            "phases": "decoupled",
            "learned_labels": True,
        },
        "relabeling": {"labels": "learned"},
        "evaluation": SOFT_STUDENT,
    },
    published=published_by(CELLS, _RUNS),
    choice=choice_by("of imbalance factor 100 (CIFAR-10) or 10 and the nearest images per class"),
    budgets=budgets(
        {**TAUGHT_DEMO, "classifier_epochs": 2, "classifier_steps": 15},
        {"classifier_epochs": 4, "classifier_steps": 10},
    ),
)
