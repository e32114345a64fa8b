"""What decides whether a stored stage is found: keys are pinned, and new fields change none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers.tiny_run import QUIET, TINY

from ltdd.config import (
    STAGES,
    DistillConfig,
    EvaluationConfig,
    StatisticsConfig,
    deciding_settings,
)
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.engine.stage_runner import Stored
from ltdd.recipes.presets import preset
from ltdd.stages.run import Run

UPSTREAM = Stored(None, "0" * 64)


@pytest.fixture(scope="module")
def digits() -> LongTailedData:
    return load_data("digits", 50.0)


def configuration(name: str) -> DistillConfig:
    data = "cifar10" if name == "paper" else "digits"
    return DistillConfig.from_dict(preset(name, data) | {"device": "cpu", "precision": "fp32"})


def keys(config: DistillConfig, data: LongTailedData, out: Path) -> dict[str, str]:
    run = Run.create(config, data, out, QUIET)
    return {
        stage: run.stages.key(stage, deciding_settings(getattr(config, stage)), [UPSTREAM])[:12]
        for stage in STAGES
    }


PINNED: dict[str, dict[str, str]] = {
    "cpu": {
        "evaluation": "54ebfabfd3fa",
        "experts": "f0a6c6fbe070",
        "initialization": "e9ec7acc9576",
        "recovery": "a2503fe9520c",
        "relabeling": "464240235639",
        "statistics": "21087c5742ea",
    },
    "demo": {
        "evaluation": "9038410e136e",
        "experts": "cd5ab61e70d7",
        "initialization": "09000409a5d9",
        "recovery": "1ac6699f186a",
        "relabeling": "27727724ee14",
        "statistics": "40af55ecd92d",
    },
    "paper": {
        "evaluation": "243aea3f41d8",
        "experts": "8bf758fadacd",
        "initialization": "5333e20fffd7",
        "recovery": "a929a188fa6d",
        "relabeling": "464240235639",
        "statistics": "21087c5742ea",
    },
}


@pytest.mark.parametrize("name", ["demo", "cpu", "paper"])
def test_keys_are_those_of_yesterday(name: str, digits: LongTailedData, tmp_path: Path) -> None:
    """A key that changes orphans stored results: raise `FORMAT`, and say so in the changelog."""
    assert keys(configuration(name), digits, tmp_path) == PINNED[name]


def test_a_new_field_with_a_default_is_in_no_key() -> None:
    @dataclasses.dataclass(frozen=True)
    class Later(EvaluationConfig):
        new_option: bool = False
        NOT_IN_KEYS: ClassVar = EvaluationConfig.NOT_IN_KEYS

    assert deciding_settings(Later(epochs=3)) == deciding_settings(EvaluationConfig(epochs=3))
    assert deciding_settings(Later(new_option=True)) == {"new_option": True}


@pytest.mark.parametrize(
    ("settings", "decides"),
    [
        (StatisticsConfig(batch_size=7), {}),
        (EvaluationConfig(seeds=9, baselines=(), full_epochs=4), {}),
        (EvaluationConfig(epochs=7, seeds=9), {"epochs": 7}),
        (dataclasses.replace(TINY.experts, observer="resnet9", class_map="x.json"), None),
    ],
)
def test_fields_that_do_not_change_the_result_are_in_no_key(
    settings: Any, decides: dict[str, Any] | None
) -> None:
    expected = deciding_settings(TINY.experts) if decides is None else decides
    assert deciding_settings(settings) == expected
