"""The columns in which methods are compared: whose labels a set's students learn from, and how.

A column is a recipe of which only ``relabeling`` and ``evaluation`` count, and in `TEACHER`
``experts``: what teaches the students of a set that another recipe made. ``own`` has none here: it
is what a set's own recipe evaluates.

Last epoch in all of them. Published figures of the field are the best of several epochs on the test
images.
"""

from __future__ import annotations

from collections.abc import Mapping

from ltdd.recipes.recipe import Recipe, Settings
from ltdd.recipes.rldd import RLDD

HARD_LABELS: Settings = {"labels": "hard"}

DSA_STUDENT: Settings = {
    # arXiv:2102.08259 and, with these values, the trajectory methods (arXiv:2203.11932)
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,  # Deviation: not on vectors, as everywhere here
    "batch_size": 128,
    "schedule": "halfway",
    "augmentation": "dsa",
    "cutmix": False,
    "randaugment": False,
    "ema_decay": 0.0,
}
"""How the field trains students on class labels."""

SHORTER: Mapping[str, Settings] = {
    # 8 pixels leave nothing of a stroke that is interpolated.
    "demo": {"evaluation": {"epochs": 300, "dsa_operations": ["color", "crop", "cutout"]}},
    "cpu": {"evaluation": {"epochs": 1000}},
}
"""Budgets of `DSA_STUDENT`; 1,000 epochs are published."""


def class_label_settings(data: str, image_size: int | None, ipc: int) -> Settings:
    """Return the published settings of a method that learns class labels.

    Experts and architecture are those of RLDD for the data, so that its teacher is shared.
    """
    rldd = RLDD.published_settings(data, image_size, ipc)
    own = ("initialization", "recovery", "relabeling", "evaluation")
    shared = {name: value for name, value in rldd.items() if name not in own}
    student = {name: rldd["evaluation"][name] for name in ("student", "seeds")}
    return shared | {"evaluation": student | {"epochs": 1000}}


HARD = Recipe(
    name="hard",
    title="class labels and one way of training for all sets",
    paper="arXiv:2102.08259",
    method={"relabeling": HARD_LABELS, "evaluation": DSA_STUDENT},
    published=class_label_settings,
    budgets=SHORTER,
)
"""What the images are worth by themselves."""

TEACHER = RLDD
"""What the images are worth to a debiased teacher that labels every view."""

COLUMNS: Mapping[str, Recipe] = {"hard": HARD, "teacher": TEACHER}
"""Name -> recipe of the columns beside ``own``."""
