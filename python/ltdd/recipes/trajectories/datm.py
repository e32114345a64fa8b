"""DATM, which learns labels too and matches the later the more images there are.

Sources: arXiv:2310.05773 and its authors' configuration of each cell; experts are those of FTD.
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
    steps: int,
    window: tuple[int, int | None, int, int],
    image_rate: float,
    label_rate: float,
    batch: int | None = None,
    **others: object,
) -> Cell:
    first, current, last, iterations = window
    return {
        "steps": steps,
        "start_min": first,
        "curriculum_from": current,
        "start_max": last,
        "curriculum_iterations": iterations,
        "image_learning_rate": image_rate,
        "label_learning_rate": label_rate,
        "synthetic_batch": batch,
    } | others


CELLS: dict[str, dict[int, Cell]] = {
    "cifar10": {
        1: _cell(80, (0, None, 4, 1), 100, 5.0, rate_learning_rate=1e-7, threshold=1.1),
        10: _cell(80, (0, 10, 20, 1000), 100, 2.0),
        50: _cell(80, (0, 20, 40, 2000), 1000, 2.0),
    },
    "cifar100": {
        1: _cell(40, (0, 10, 20, 1000), 1000, 10.0, expert_epochs=3),
        10: _cell(80, (0, 30, 50, 2000), 1000, 10.0, 1000),
        50: _cell(80, (20, None, 70, 1), 1000, 10.0, 1000, start="random_real"),
    },
    "tiny-imagenet": {
        1: _cell(40, (0, 15, 20, 2000), 10_000, 10.0, rate_learning_rate=1e-4),
        10: _cell(40, (10, None, 50, 1), 100, 10.0, 500, rate_learning_rate=1e-4),
        50: _cell(20, (40, None, 70, 1), 100, 10.0, 1000, rate_learning_rate=1e-4),
    },
}
_RUNS: Settings = {
    "trajectories": 100,
    "trajectory_epochs": 100,
    "iterations": 10_000,
    "student_learning_rate": 0.01,
    "rate_learning_rate": 1e-5,
}

DATM = Recipe(
    name="datm",
    title="images and labels that lead networks along late parts of experts' paths (6 experts and "
    "60 iterations on digits, 4 and 300 on few cores, 100 and 10,000 published)",
    paper="arXiv:2310.05773",
    method={
        "initialization": {"method": "correct_real"},
        "recovery": {
            "method": "trajectory",
            **GSAM,
            "sharpness_weight": 0.3,  # FTD
            "learned_labels": True,
            "threshold": 1.0,
        },
        "relabeling": {"labels": "learned"},
        "evaluation": SOFT_STUDENT,
    },
    published=published_by(CELLS, _RUNS),
    choice=choice_by("of the nearest images per class, whatever the imbalance"),
    budgets=budgets(TAUGHT_DEMO, {}),
)
