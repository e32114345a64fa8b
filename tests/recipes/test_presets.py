"""Presets: known fields, networks that fit, and the published values of each data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltdd.cli.main import main
from ltdd.cli.options import parse_distill
from ltdd.config import DistillConfig
from ltdd.data.packed_logits import packed_bytes
from ltdd.models import build_model
from ltdd.recipes.presets import PRESETS, preset
from ltdd.recipes.rldd import PUBLISHED, published_name

CLASSES = {"cifar10": 10, "cifar100": 100, "tiny-imagenet": 200}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("data", ["digits", "cifar10", "cifar100", "imagefolder:tiny-imagenet-200"])
def test_every_preset_is_a_configuration(name: str, data: str) -> None:
    DistillConfig.from_dict({"data": data} | preset(name, data))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_fit_the_images_and_give_soft_labels(name: str) -> None:
    config = DistillConfig.from_dict(PUBLISHED[name])
    size = config.image_size or 32
    with torch.device("meta"):
        for architecture in (config.experts.observer, config.evaluation.student):
            model = build_model(architecture, CLASSES.get(name, 1000), size, 3)
            shape = (2, 3, size, size)
            assert model(torch.empty(shape)).shape == (2, CLASSES.get(name, 1000))
    assert config.evaluation.seeds == 5
    assert config.evaluation.epochs == 1000


@pytest.mark.parametrize(
    ("data", "size", "name"),
    [
        ("cifar10", None, "cifar10"),
        ("torchvision:CIFAR100", None, "cifar100"),
        ("imagefolder:/data/cifar100/of/cifar-10-lt", None, "cifar10"),
        ("imagefolder:/data/imagenet/tiny-imagenet-200", None, "tiny-imagenet"),
        ("imagefolder:/data/imagenet", None, "imagenet-64"),
        ("imagefolder:/data/imagenet", 224, "imagenet-224"),
        ("list:/data/ImageNet_LT_train.txt,/data/ImageNet_LT_test.txt", None, "imagenet-224"),
        ("list:/data/ImageNet_LT_train.txt", 64, "imagenet-64"),
        ("imagefolder:/photos", None, "cifar10"),
        ("imagefolder:/photos", 64, "tiny-imagenet"),
        ("imagefolder:/photos", 200, "imagenet-224"),
    ],
)
def test_the_data_choose_the_published_settings(data: str, size: int | None, name: str) -> None:
    assert published_name(data, size)[0] == name
    # What the settings themselves set does not lead to other ones.
    assert published_name(data, PUBLISHED[name].get("image_size", size))[0] == name


def settings(name: str, *fields: str) -> list[Any]:
    config = DistillConfig.from_dict(PUBLISHED[name]).to_dict()
    values = []
    for field in fields:
        value: Any = config
        for part in field.split("."):
            value = value[part]
        values.append(value)
    return values


STUDENT = ("optimizer", "learning_rate", "weight_decay", "schedule", "batch_size", "hard_weight")
RECOVERY = ("iterations", "max_batch", "alignment_weight", "crop_min_scale", "learning_rate")
EXPERTS = ("epochs", "batch_size", "learning_rate", "weight_decay", "debias_power")


@pytest.mark.parametrize(
    ("name", "roles", "experts", "recovery", "student"),
    [
        (
            "cifar10",
            ["resnet32", "convnet3", "convnet3"],
            [200, 64, 0.01, 5e-3, 0.8],
            [75, 1000, 0.01, 0.08, 0.05],
            ["adamw", 1e-3, 0.01, "step", 25, 0.025],
        ),
        (
            "cifar100",
            ["resnet32", "convnet3", "convnet3"],
            [200, 64, 0.01, 5e-3, 0.8],
            [2000, 100, 0.01, 0.5, 0.05],
            ["sgd", 0.1, 5e-4, "cos2", 100, 0.0],
        ),
        (
            "tiny-imagenet",
            ["resnet18", "convnet4", "convnet4"],
            [200, 64, 0.01, 5e-3, 0.8],
            [2000, 100, 0.01, 0.5, 0.05],
            ["sgd", 0.1, 5e-4, "smoothed_cosine", 100, 0.025],
        ),
        (
            "imagenet-64",
            ["resnext50", "same", "convnet4"],
            [135, 120, 0.1, 2e-4, 1.0],
            [1000, 80, 0.1, 0.5, 0.05],
            ["adamw", 1e-3, 0.01, "cos2", 100, 0.025],
        ),
        (
            "imagenet-224",
            ["resnext50", "same", "resnext50"],
            [135, 120, 0.1, 2e-4, 1.0],
            [1000, 80, 0.1, 0.5, 0.05],
            ["adamw", 1e-3, 0.01, "cos2", 100, 0.025],
        ),
    ],
)
def test_the_published_values(
    name: str, roles: list[str], experts: list[Any], recovery: list[Any], student: list[Any]
) -> None:
    asked = ("experts.observer", "experts.teacher", "evaluation.student")
    assert settings(name, *asked) == roles
    assert settings(name, *(f"experts.{field}" for field in EXPERTS)) == experts
    assert settings(name, *(f"recovery.{field}" for field in RECOVERY)) == recovery
    assert settings(name, *(f"evaluation.{field}" for field in STUDENT)) == student
    assert settings(name, "evaluation.logit_std_norm") == [name == "cifar10"]
    warm_up = [10] if name.startswith("imagenet") else [None]
    assert settings(name, "experts.warmup_epochs") == warm_up


@pytest.mark.parametrize("name", PUBLISHED)
def test_labels_of_many_classes_are_not_stored(name: str) -> None:
    config = DistillConfig.from_dict(PUBLISHED[name])
    classes = CLASSES.get(name, 1000)
    rows = config.evaluation.epochs * 10 * classes
    stored = packed_bytes(config.relabeling, rows, classes, 2)
    assert config.relabeling.labels == ("fkd" if stored < 2**30 / 2 else "online")


def test_a_run_says_whose_published_settings_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ltdd.pipeline.distill", lambda *_, **__: 1 / 0)
    words = ["distill", "--preset", "paper", "--data", "digits", "--out", str(tmp_path)]
    with pytest.raises(ZeroDivisionError):
        main(words)
    shown = capsys.readouterr().out
    assert shown.startswith(
        "preset paper: published settings of cifar10, by default; name or image size"
    )


def test_the_image_size_on_the_command_line_chooses_too() -> None:
    words = "--preset paper --data imagefolder:/data/imagenet --out x"
    assert parse_distill(words.split()).config.image_size == 64
    large = parse_distill([*words.split(), "--image-size", "224"]).config
    assert (large.image_size, large.evaluation.student) == (224, "resnext50")
    small = parse_distill([*words.split(), "--image-size=32"]).config
    assert (small.image_size, small.evaluation.student) == (32, "convnet4")


def test_more_images_have_fewer_epochs_on_few_cores() -> None:
    words = ["--preset", "cpu", "--data", "imagefolder:/photos", "--out", "x"]
    students = {
        ipc: parse_distill([*words, "--ipc", str(ipc)]).config.evaluation
        for ipc in (1, 5, 10, 20, 50, 200)
    }
    assert [one.epochs for one in students.values()] == [10_000, 7500, 3750, 1875, 1250, 1250]
    assert all((one.optimizer, one.learning_rate) == ("muon", 2e-3) for one in students.values())
    assert [one.crop_min_scale for one in students.values()] == [0.08] + 5 * [0.25]
    assert all(one.randaugment for one in students.values())
    assert parse_distill(words).config.evaluation == students[10]
