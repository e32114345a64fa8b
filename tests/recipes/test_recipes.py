"""Recipes: methods as data, on which a preset decides how much a run may cost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ltdd.cli.options import parse_distill
from ltdd.config import DistillConfig, NoRecovery, PlainExperts, RandomReal
from ltdd.engine.storage.files import read_json
from ltdd.errors import UserError
from ltdd.recipes import PRESETS, RECIPES, Recipe, configure, find_recipe
from ltdd.recipes.presets import preset
from ltdd.recipes.rldd import PUBLISHED, RLDD

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/add_a_recipe.py"
PLAIN = Recipe(
    name="plain",
    title="real images",
    paper="nowhere",
    method={
        "experts": {"loss": "ce", "weight_decay": 2e-3},
        "initialization": {"method": "random_real"},
        "recovery": {"method": "none"},
    },
    published=lambda data, image_size, ipc: {
        "ipc": ipc,
        "experts": {"observer": "vgg11" if data == "cifar10" else "resnet18"},
    },
)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", [None, *PRESETS])
def test_every_recipe_has_every_preset(recipe: Recipe, name: str | None) -> None:
    config = configure(recipe, name, data="cifar10", image_size=32)
    assert isinstance(config, DistillConfig)
    assert re.fullmatch(r"[a-z0-9_-]+", recipe.name)
    assert recipe.title
    assert recipe.paper


def test_the_defaults_are_rldd() -> None:
    assert configure() == configure(RLDD) == DistillConfig()
    assert find_recipe("rldd") is RLDD


def test_preset_paper_is_what_was_published_and_nothing_else() -> None:
    for name, data in (("cifar10", "cifar10"), ("imagenet-64", "imagefolder:/d/imagenet")):
        config = configure(RLDD, "paper", data=data)
        assert config == DistillConfig.from_dict({"data": data} | PUBLISHED[name])
    words = ["--out", "x", "--recipe", "rldd", "--preset", "paper", "--data", "cifar10"]
    assert parse_distill(words).config == configure(RLDD, "paper", data="cifar10")


def test_the_method_goes_before_the_budget() -> None:
    config = configure(PLAIN, "cpu", ipc=50)
    assert config.experts == PlainExperts(
        observer="convnet3_bn", epochs=50, min_steps=600, batch_size=128, learning_rate=0.05,
        nesterov=True, schedule="one_cycle", weight_decay=2e-3,
    )  # fmt: skip
    assert (config.initialization, config.recovery) == (RandomReal(), NoRecovery())
    assert config.evaluation == configure(RLDD, "cpu", ipc=50).evaluation


def test_a_function_of_the_data_gives_published_settings() -> None:
    config = configure(PLAIN, "paper", data="cifar10", ipc=3)
    assert config.experts == PlainExperts(observer="vgg11", weight_decay=2e-3)
    assert configure(PLAIN, "paper", data="digits").experts.observer == "resnet18"


def test_fields_go_before_the_recipe_and_may_choose_other_forms() -> None:
    config = configure(PLAIN, "demo", experts={"loss": "rldd", "debias_power": 0.3}, seed=4)
    assert (config.seed, config.experts.loss, config.experts.epochs) == (4, "rldd", 60)
    with pytest.raises(UserError, match=r"experts\.debias_power: a field of experts\.loss rldd"):
        configure(PLAIN, "demo", experts={"debias_power": 0.3})
    with pytest.raises(UserError, match="unknown field epochs"):
        configure(PLAIN, epochs=3)


def test_a_recipe_that_is_entered_is_known_to_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RECIPES, "plain", PLAIN)
    words = ["--out", "x", "--recipe", "plain", "--preset", "demo", "--data", "digits"]
    request = parse_distill(words)
    assert request.config == configure(PLAIN, "demo", data="digits")
    assert request.options.recipe == "plain"
    with pytest.raises(UserError, match=r"one of rldd, .*plain, got 'plian'; did you mean plain"):
        find_recipe("plian")


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match="one of demo, cpu, paper, got 'pepar'; did you mean pap"):
        preset("pepar", "digits")


def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "run")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    accuracy = {
        name: float(value) for name, value in re.findall(r"^([a-z ]+): ([0-9.]+) %$", shown, re.M)
    }
    assert set(accuracy) == {"student", "teacher"}
    assert accuracy["student"] > 50  # chance is 10
    assert read_json(tmp_path / "run/manifest.json")["config"]["recovery"] == {"method": "none"}
