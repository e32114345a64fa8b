"""Recipes that match trajectories: the published cells, and whose an imbalanced set gets."""

from __future__ import annotations

from typing import Any

import pytest

from ltdd.config import TrajectoryRecovery
from ltdd.recipes import RECIPES, configure, find_recipe

FIELDS = ("steps", "start_min", "start_max", "image_learning_rate", "synthetic_batch")


def recovery(name: str, data: str, ipc: int, preset: str = "paper") -> TrajectoryRecovery:
    settings = configure(find_recipe(name), preset, data=data, ipc=ipc).recovery
    assert isinstance(settings, TrajectoryRecovery)
    return settings


@pytest.mark.parametrize(
    ("name", "data", "ipc", "values"),
    [
        ("mtt", "cifar10", 1, [50, 0, 2, 100, None]),
        ("mtt", "cifar10", 10, [30, 0, 20, 100, None]),
        ("mtt", "cifar100", 50, [80, 0, 40, 1000, 125]),
        ("mtt", "imagefolder:/d/tiny-imagenet-200", 10, [20, 0, 40, 10_000, 200]),
        ("tesla", "cifar10", 1, [50, 0, 5, 1000, None]),
        ("ftd", "cifar100", 10, [20, 0, 40, 1000, None]),
        ("datm", "cifar10", 50, [80, 0, 40, 1000, None]),
        ("datm", "cifar100", 50, [80, 20, 70, 1000, 1000]),
        ("damed", "cifar10", 10, [80, 0, 20, 100, 500]),
        ("damed", "cifar10", 50, [80, 0, 40, 1000, 500]),
        ("damed", "cifar100", 10, [40, 30, 50, 1000, 1000]),
        ("damed", "imagefolder:/d/tiny-imagenet-200", 50, [10, 40, 70, 100, 1000]),
    ],
)
def test_the_published_cells(name: str, data: str, ipc: int, values: list[Any]) -> None:
    settings = recovery(name, data, ipc)
    assert [getattr(settings, field) for field in FIELDS] == values
    assert settings.trajectories == 100


def test_what_makes_each_method_the_method() -> None:
    kinds = {
        name: (settings.sharpness, settings.unroll, settings.learned_labels, settings.phases)
        for name in ("mtt", "tesla", "ftd", "datm", "damed")
        for settings in [recovery(name, "cifar10", 10)]
    }
    assert kinds == {
        "mtt": ("none", "exact", False, "one"),
        "tesla": ("none", "tesla", False, "one"),
        "ftd": ("gsam", "exact", False, "one"),
        "datm": ("gsam", "exact", True, "one"),
        "damed": ("gsam", "exact", True, "decoupled"),
    }
    damed = recovery("damed", "cifar10", 50)
    assert (damed.backbone_weight, damed.classifier_weight, damed.classifier_steps) == (1, 0.5, 60)
    assert (damed.trajectory_weight_decay, damed.threshold) == (5e-3, None)
    assert recovery("datm", "cifar10", 1).threshold == 1.1
    assert recovery("datm", "cifar10", 10).curriculum_from == 10


@pytest.mark.parametrize("name", ["mtt", "tesla", "ftd", "datm", "damed"])
def test_students_have_the_learned_rate_and_the_labels_of_the_method(name: str) -> None:
    for preset in (None, "demo", "cpu", "paper"):
        config = configure(find_recipe(name), preset, data="cifar10", ipc=10)
        assert config.evaluation.learning_rate is None
        soft = name in ("datm", "damed")
        assert config.relabeling.labels == ("learned" if soft else "hard")
        assert (config.evaluation.loss == "soft_ce") == soft


def test_cells_between_the_published_ones_get_the_nearest() -> None:
    assert recovery("mtt", "cifar10", 3) == recovery("mtt", "cifar10", 1)
    assert recovery("mtt", "cifar10", 4) == recovery("mtt", "cifar10", 10)
    assert recovery("damed", "cifar10", 1) == recovery("damed", "cifar10", 10)
    choice = RECIPES["damed"].choice
    assert choice is not None
    assert "of imbalance factor 100 (CIFAR-10)" in choice("cifar10", None)


def test_cifar100_starts_from_random_images_where_datm_does() -> None:
    fifty = configure(find_recipe("datm"), "paper", data="cifar100", ipc=50)
    assert fifty.initialization.method == "random_real"
    ten = configure(find_recipe("datm"), "paper", data="cifar100", ipc=10)
    assert ten.initialization.method == "correct_real"
