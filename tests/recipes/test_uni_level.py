"""SRe2L, RDED, EDC, G-VBSM, ADSA and UniMix: their values, and runs on classes of few images."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.stripes import make_data
from helpers.tiny_run import QUIET
from safetensors.torch import load_file
from torch import nn

from ltdd import pipeline
from ltdd.config import (
    DistillConfig,
    Noise,
    NoRecovery,
    PlainExperts,
    RandomReal,
    UniMixExperts,
)
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.models import build_model
from ltdd.recipes import PRESETS, configure, find_recipe
from ltdd.recipes.rldd import PUBLISHED

NAMES = ("sre2l", "rded", "edc", "g_vbsm", "adsa", "unimix")
DATA = {"cifar10": 32, "cifar100": 32, "tiny-imagenet": 64}


def published(name: str, data: str, ipc: int = 10) -> DistillConfig:
    source = data if data.startswith("cifar") else f"imagefolder:/{data}"
    return configure(find_recipe(name), "paper", data=source, ipc=ipc)


def observers(config: DistillConfig) -> list[str]:
    return [config.experts.observer, *config.experts.extra_observers]


@functools.cache
def has_batch_norm(network: str, size: int) -> bool:
    """Build a network of ten classes, see what it makes of images, and what it is made of."""
    with torch.device("meta"):
        model = build_model(network, 10, size, 3)
        assert model(torch.empty(2, 3, size, size)).shape == (2, 10)
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_networks_fit_the_images_and_have_what_is_matched(name: str) -> None:
    configs = [(published(name, data), size) for data, size in DATA.items()]
    for preset, data, size in (("demo", "digits", 8), ("cpu", "cifar10", 32)):
        configs.append((configure(find_recipe(name), preset, data=data), size))
    for config, size in configs:
        assert (config.image_size or size) == size
        assert isinstance(has_batch_norm(config.evaluation.student, size), bool)
        norms = [has_batch_norm(network, size) for network in observers(config)]
        assert all(norms) or config.statistics.layers == "batch_norm_and_conv"


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_other_images_are_those_of_the_nearest(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.choice is not None
    assert "published settings of cifar100" in recipe.choice("torchvision:CIFAR100", None)
    large = configure(recipe, "paper", data="imagefolder:/imagenet")
    assert large.image_size == 64


def test_rded() -> None:
    config = published("rded", "cifar10")
    assert isinstance(config.experts, PlainExperts)
    assert config.recovery == NoRecovery()
    start = config.initialization
    assert (start.method, start.crops_per_image, start.crop_min_scale) == ("scored_crops", 5, 0.08)
    assert (start.images_per_class, start.tiles) == (300, 1)
    student = config.evaluation
    assert (student.student, student.loss, student.temperature) == ("convnet3_bn", "kl", 20)
    assert (student.optimizer, student.learning_rate, student.weight_decay) == ("adamw", 1e-3, 0.01)
    assert (student.epochs, student.schedule, student.ema_decay) == (300, "smoothed_cosine", 0)
    assert (student.crop_min_scale, student.cutmix, student.randaugment) == (1, True, False)
    assert student.hard_weight == 0
    batches = [published("rded", "cifar10", ipc).evaluation.batch_size for ipc in (1, 10, 50)]
    assert batches == [10, 50, 100]
    hundred = published("rded", "cifar100").evaluation
    assert (hundred.batch_size, hundred.learning_rate) == (25, 2e-3)


def test_sre2l() -> None:
    for data in ("cifar10", "cifar100"):
        config = published("sre2l", data)
        assert isinstance(config.experts, PlainExperts)
        assert isinstance(config.initialization, Noise)
        experts = config.experts
        assert (experts.observer, experts.epochs, experts.batch_size) == ("resnet18", 200, 128)
        assert (experts.learning_rate, experts.weight_decay) == (0.1, 5e-4)
        assert config.statistics.global_target == "running"
        recovery = config.recovery
        assert (recovery.iterations, recovery.learning_rate) == (1000, 0.25)
        assert (recovery.alignment_weight, recovery.class_alignment_weight) == (0.01, 0)
        assert (recovery.order, recovery.max_batch) == ("one_per_class", 100)
        assert (recovery.jitter, recovery.mirror, recovery.crop_min_scale) == (4, False, 1)
        assert config.relabeling.teacher_mode == "batch"
        student = config.evaluation
        assert (student.loss, student.temperature, student.hard_weight) == ("kl", 30, 0)
        assert (student.augmentation, student.mixup, student.cutmix) == ("padded", 0.8, False)
        assert (student.schedule, student.epochs, student.batch_size) == ("cosine", 400, 128)
    tiny = published("sre2l", "tiny-imagenet")
    assert (tiny.recovery.iterations, tiny.recovery.learning_rate) == (4000, 0.1)
    assert (tiny.recovery.alignment_weight, tiny.recovery.mirror) == (1, True)
    assert tiny.relabeling.teacher_mode == "eval"
    assert (tiny.evaluation.temperature, tiny.evaluation.mixup, tiny.evaluation.cutmix) == (
        20, 0, True,
    )  # fmt: skip


def test_edc() -> None:
    config = published("edc", "cifar10")
    assert len(observers(config)) == 8
    assert isinstance(config.initialization, RandomReal)
    assert dataclasses.astuple(config.statistics)[1:] == ("batch_norm_and_conv", "running", "edc")
    recovery = config.recovery
    assert (recovery.iterations, recovery.learning_rate, recovery.max_batch) == (75, 0.05, 1000)
    # 0.01 (0.5 of the whole + 0.5 of the classes)
    assert (recovery.alignment_weight, recovery.class_alignment_weight) == (0.005, 1)
    assert (recovery.class_part, recovery.momentum) == ("pooled", 0.8)
    assert (recovery.order, recovery.first_layer_weight) == ("class_major", 10)
    assert (recovery.hook_drop, recovery.eigen_weight, recovery.jitter) == (0, 0, 0)
    student = config.evaluation
    assert (student.student, student.loss, student.hard_weight) == ("resnet18", "mse", 0.025)
    assert (student.batch_size, student.randaugment, student.ema_decay) == (25, True, 0.99)
    assert published("edc", "cifar10", 1).evaluation.batch_size == 10
    hundred = published("edc", "cifar100")
    assert (hundred.recovery.iterations, hundred.recovery.crop_min_scale) == (2000, 0.5)
    assert (hundred.recovery.max_batch, hundred.experts.epochs) == (100, 50)
    assert len(observers(published("edc", "tiny-imagenet"))) == 5


def test_g_vbsm() -> None:
    config = published("g_vbsm", "cifar10")
    assert len(observers(config)) == 5
    assert isinstance(config.initialization, Noise)
    recovery = config.recovery
    assert (recovery.iterations, recovery.learning_rate, recovery.max_batch) == (4000, 0.05, 100)
    assert (recovery.alignment_weight, recovery.class_alignment_weight) == (0.01, 0)
    assert (recovery.hook_drop, recovery.eigen_weight) == (0.4, 1)
    assert (recovery.jitter, recovery.crop_padding, recovery.crop_min_scale) == (32, 4, 1)
    student = config.evaluation
    assert (student.loss, student.hard_weight, student.batch_size) == ("mse", 0.15, 100)
    assert published("g_vbsm", "cifar100").evaluation.student == "convnet3"


@pytest.mark.parametrize("preset", PRESETS)
def test_adsa_is_edc_with_other_labels(preset: str) -> None:
    edc, adsa = (configure(find_recipe(name), preset, data="cifar10") for name in ("edc", "adsa"))
    assert (edc.relabeling.calibration, adsa.relabeling.calibration) == ("none", "adsa")
    assert dataclasses.replace(adsa, relabeling=edc.relabeling) == edc


@pytest.mark.parametrize("preset", PRESETS)
def test_unimix_is_rldd_with_other_experts(preset: str) -> None:
    unimix, rldd = (
        configure(find_recipe(name), preset, data="cifar10") for name in ("unimix", "rldd")
    )
    assert isinstance(unimix.experts, UniMixExperts)
    # The labels of cpu are shifted for experts that have a master.
    assert (rldd.relabeling != unimix.relabeling) == (preset == "cpu")
    shared = {"experts": rldd.experts, "relabeling": rldd.relabeling}
    assert dataclasses.replace(unimix, **shared) == rldd
    if preset == "paper":
        assert (unimix.experts.learning_rate, unimix.experts.weight_decay) == (0.1, 2e-4)
        assert unimix.experts.observer == PUBLISHED["cifar10"]["experts"]["observer"]


@pytest.fixture(scope="module")
def tail() -> LongTailedData:
    """Classes of 5, 2 and 1 images."""
    return make_data((5, 2, 1))


@pytest.mark.parametrize("name", NAMES)
def test_classes_of_few_images_are_distilled(
    name: str, tail: LongTailedData, tmp_path: Path
) -> None:
    """As many images of every class, more than the smaller ones have."""
    short: dict[str, Any] = {"epochs": 2, "baselines": ["random_real"], "seeds": 1}
    config = configure(
        find_recipe(name),
        "demo",
        ipc=4,
        device="cpu",
        experts={"epochs": 1, "batch_size": 4},
        evaluation=short,
    )
    if not isinstance(config.recovery, NoRecovery):
        config = dataclasses.replace(
            config, recovery=dataclasses.replace(config.recovery, iterations=3)
        )
    results = pipeline.distill(config, tmp_path, data=tail, options=QUIET)
    assert 0 <= results["student"]["accuracy"]["mean"] <= 1
    made = load_file(tmp_path / "data.safetensors")
    assert made["labels"].bincount().tolist() == [4, 4, 4]
    assert torch.isfinite(made["logits"]).all()
    # No two images are the same, but where real ones are repeated as they are.
    different = len(made["images"].flatten(1).unique(dim=0))
    assert different == 12
