"""The recipes of matching: what was published for which set, and how budgets shorten it."""

from __future__ import annotations

from typing import Any

import pytest

from ltdd.config import DistillConfig, DistributionMatching, GradientMatching
from ltdd.recipes import RECIPES, configure

GRADIENT = ("dc", "dsa", "idc", "dream")
DISTRIBUTION = ("dm", "idm", "csdm")
FORMED = ("idc", "dream", "idm")


def paper(recipe: str, ipc: int = 10, data: str = "cifar10") -> Any:
    return configure(RECIPES[recipe], "paper", data=data, ipc=ipc)


@pytest.mark.parametrize("recipe", [*GRADIENT, *DISTRIBUTION])
@pytest.mark.parametrize("preset", [None, "demo", "cpu", "paper"])
def test_forms_and_labels(recipe: str, preset: str | None) -> None:
    config = configure(RECIPES[recipe], preset, data="cifar10")
    wanted = GradientMatching if recipe in GRADIENT else DistributionMatching
    assert isinstance(config.recovery, wanted)
    assert config.relabeling.labels == "hard"
    assert config.evaluation.optimizer == "sgd"
    assert (config.evaluation.learning_rate, config.evaluation.weight_decay) == (0.01, 5e-4)
    assert config.evaluation.ema_decay == 0


@pytest.mark.parametrize("recipe", FORMED)
@pytest.mark.parametrize(("preset", "factor"), [("demo", 1), ("cpu", 2), ("paper", 2)])
def test_images_are_tiled_matched_and_shown_alike(recipe: str, preset: str, factor: int) -> None:
    config: Any = configure(RECIPES[recipe], preset, data="cifar10")
    asked = config.initialization.tiles, config.recovery.formation, config.evaluation.decode
    assert asked == (factor,) * 3


@pytest.mark.parametrize("recipe", [*GRADIENT, *DISTRIBUTION])
def test_the_teacher_is_that_of_every_method(recipe: str) -> None:
    for preset in ("demo", "cpu", "paper"):
        theirs = configure(RECIPES["rldd"], preset, data="cifar10")
        ours = configure(RECIPES[recipe], preset, data="cifar10")
        assert ours.experts == theirs.experts
        assert ours.ipc == theirs.ipc


@pytest.mark.parametrize("recipe", ["dc", "dsa"])
@pytest.mark.parametrize(
    ("ipc", "loops"),
    [(1, (1, 1)), (5, (1, 1)), (10, (10, 50)), (20, (20, 25)), (50, (50, 10)), (100, (50, 10))],
)
def test_loops_of_dc(recipe: str, ipc: int, loops: tuple[int, int]) -> None:
    recovery = paper(recipe, ipc).recovery
    assert (recovery.inner, recovery.network_epochs) == loops
    assert (recovery.outer, recovery.real_batch) == (1000, 256)
    assert (recovery.image_learning_rate, recovery.image_momentum) == (0.1, 0.5)
    assert (recovery.distance, recovery.parameters) == ("rows_cosine", "weights")
    assert (recovery.network_learning_rate, recovery.network_momentum) == (0.01, 0.0)


def test_dc_shows_bare_images_and_dsa_augmented_ones() -> None:
    dc, dsa = paper("dc"), paper("dsa")
    assert dc.initialization.method == "noise"
    assert dc.recovery.augmentation == dc.evaluation.dsa_operations == ()
    assert dc.evaluation.epochs == 300
    assert dsa.initialization.method == "random_real"
    assert len(dsa.recovery.augmentation) == len(dsa.evaluation.dsa_operations) == 6
    assert dsa.evaluation.epochs == 1000
    assert dc.evaluation.batch_size == dsa.evaluation.batch_size == 256
    assert dc.evaluation.schedule == dsa.evaluation.schedule == "halfway"


def test_idc_and_dream() -> None:
    idc, dream, tiny = paper("idc"), paper("dream"), paper("idc", 50, "imagefolder:tiny-imagenet")
    for config in (idc, dream):
        recovery, student = config.recovery, config.evaluation
        assert (recovery.distance, recovery.parameters) == ("squared", "convolutions")
        assert (recovery.real_batch, recovery.synthetic_batch, recovery.inner) == (128, 128, 100)
        assert (recovery.image_learning_rate, recovery.scaled_rate) == (5e-3, True)
        assert (recovery.pixels, recovery.clamp) == ("unit", True)
        assert (recovery.network_images, recovery.network_cutmix) == (2000, 0.5)
        assert (student.schedule, student.augmentation, student.batch_size) == ("idc", "idc", 64)
        assert (student.cutmix, student.cutmix_probability) == (True, 0.5)
    assert (idc.recovery.representatives, idc.recovery.outer) == ("random", 2000)
    assert (dream.recovery.representatives, dream.recovery.outer) == ("clusters", 250)
    assert (idc.initialization.choice, dream.initialization.choice) == ("random", "clusters")
    assert (tiny.recovery.real_batch, tiny.recovery.network_images) == (64, 1000)
    assert (tiny.recovery.image_learning_rate, tiny.recovery.network) == (1e-6, "convnet4")


@pytest.mark.parametrize(
    ("data", "ipc", "weight", "steps"),
    [
        ("cifar10", 1, 0.5, 10),
        ("cifar10", 10, 0.5, 10),
        ("cifar10", 50, 0.1, 10),
        ("cifar100", 1, 0.5, 10),
        ("cifar100", 10, 0.1, 50),
        ("cifar100", 50, 0.1, 10),
        ("imagefolder:tiny-imagenet", 10, 0.5, 10),
        ("imagefolder:tiny-imagenet", 50, 0.8, 50),
    ],
)
def test_idm_by_data_and_images(data: str, ipc: int, weight: float, steps: int) -> None:
    config = paper("idm", ipc, data)
    recovery = config.recovery
    assert (recovery.ce_weight, recovery.network_steps) == (weight, steps)
    assert (recovery.real_batch, recovery.pool_period) == ((5000, 5) if ipc == 1 else (256, 30))
    assert (recovery.pool, recovery.iterations) == (100, 20_000)
    assert config.initialization.resampling == "bilinear"


def test_csdm_gives_heads_more_of_the_amplitude() -> None:
    recovery = paper("csdm").recovery
    assert recovery.distance == "characteristic"
    assert recovery.amplitude_head > 0.5 > recovery.amplitude_tail


def test_dm_sees_a_fresh_network_in_every_step() -> None:
    recovery = paper("dm").recovery
    assert (recovery.pool, recovery.pool_period, recovery.trained_networks) == (1, 1, 0)
    assert (recovery.ce_weight, recovery.image_learning_rate) == (0.0, 1.0)
    assert isinstance(paper("dm"), DistillConfig)
